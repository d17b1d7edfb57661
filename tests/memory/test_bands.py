"""Layers recomputed a band of rows at a time: the forward is torch's, the gradients the whole's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from kept import kept_bytes
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.misc import Conv2dNormActivation

from lowtide.codecs.affine import Affine
from lowtide.codecs.base import Residue
from lowtide.codecs.exact import Exact
from lowtide.memory import bands
from lowtide.memory.compress import compress
from lowtide.memory.policy import Policy
from lowtide.ops import bands as cut
from lowtide.ops import fan
from lowtide.planning.meter import Meter

EXACT = Policy({"conv": Exact(), "layer_norm": Exact(), "relu": Exact()}, chunk=1 << 9)
LOCAL: dict[str, Callable[[], nn.Module]] = {
    "head": lambda: nn.Sequential(
        Conv2dNormActivation(4, 6, 3, norm_layer=None), nn.Conv2d(6, 2, 1)
    ),
    "deep": lambda: nn.Sequential(
        *(Conv2dNormActivation(4, 4, 3, norm_layer=None) for _ in range(3))
    ),
    "dilated": lambda: nn.Sequential(
        nn.Conv2d(4, 4, (5, 3), padding=(4, 1), dilation=(2, 1), groups=2), nn.Tanh()
    ),
    "same": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.SiLU()),
    "enlarged": lambda: nn.Sequential(
        nn.ConvTranspose2d(4, 6, 2, 2),
        LayerNorm2d(6),
        nn.GELU(),
        nn.ConvTranspose2d(6, 3, 2, 2),
        nn.Conv2d(3, 5, 3, padding=1, bias=False),
        LayerNorm2d(5),
    ),
    "norm at rest": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)).eval(),
    "masks": lambda: MaskRCNNHeads(4, (4, 4), 1),
    "scores": lambda: MaskRCNNPredictor(4, 6, 3),
}
OTHER: dict[str, Callable[[], nn.Module]] = {
    "strided": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()),
    "without edges": lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()),
    "overlapping": lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3, 2), nn.ReLU()),
    "reflected": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()
    ),
    "even": lambda: nn.Sequential(nn.Conv2d(4, 4, 4, padding="same"), nn.ReLU()),
    "group norm": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
    "pool": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1)),
    "noise": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.5)),
    "frozen": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).requires_grad_(False),
    "alone": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)),
}


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every map counts as large, and a band has a few rows."""
    monkeypatch.setattr(bands, "LARGE", 1)
    monkeypatch.setattr(fan, "LARGE", 1)
    monkeypatch.setattr(cut, "BAND", 200)


def stepped(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Results, and gradients of the input and the weights, from fixed cotangents."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = model(x * 1)
    each = [y] if isinstance(y, Tensor) else [t for part in y for t in part]
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    # Whatever the strides.
    dy = [torch.randn(t.shape, dtype=torch.float64).to(t.dtype) for t in each]
    return [*each, *torch.autograd.grad(each, wanted, dy)]


@pytest.mark.parametrize("size", [(12, 8), (1, 5), (7, 16)])
@pytest.mark.parametrize("name", LOCAL)
def test_gradients_are_those_of_the_whole(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = LOCAL[name]().double()
    x = torch.randn(3, 4, *size, dtype=torch.float64)
    theirs = stepped(model, x)
    compress(model, EXACT)
    for mine, whole in zip(stepped(model, x), theirs, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOCAL)
def test_of_what_is_inside_nothing_is_kept(name: str) -> None:
    model = compress(LOCAL[name](), EXACT)
    x = torch.randn(3, 4, 12, 8, requires_grad=True)
    assert kept_bytes(model, x) == x.nbytes or kept_bytes(model, x) == 0  # the input is there


@pytest.mark.parametrize("name", OTHER)
def test_others_are_left_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(bands, "banded", refuse)
    compress(OTHER[name](), EXACT)(torch.randn(2, 4, 8, 8, requires_grad=True))


def test_the_head_of_proposals_has_several_maps() -> None:
    """One reads codes of its own, and small maps are not cut."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = RPNHead(4, 3)
            for p in self.head.parameters():
                nn.init.normal_(p)

        def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            return self.head([x, x[..., :1, :], nn.functional.max_pool2d(x, 2)])

    torch.manual_seed(0)
    model = Reads().double()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    theirs = stepped(model, x)
    for mine, whole in zip(stepped(compress(model, EXACT), x), theirs, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group", [8, 16, "row"])
def test_rows_are_read_off_codes(group: int | str) -> None:
    """At what the codec gives back gradients are torch's, whether rows are read alone or not."""
    torch.manual_seed(0)
    codec = Affine(8, group)  # type: ignore[arg-type]
    plain = LOCAL["deep"]().double()
    model = compress(copy.deepcopy(plain), Policy({"conv": codec}, chunk=1 << 9))
    x = torch.randn(2, 4, 20, 16, dtype=torch.float64, requires_grad=True)
    y = model(x * 1)
    dy = torch.randn_like(y)
    mine = torch.autograd.grad(y, [x, *model.parameters()], dy)
    known = codec.unpack(codec.pack(Residue(x.detach())), x.shape, x.dtype).requires_grad_()
    theirs = torch.autograd.grad(plain(known), [known, *plain.parameters()], dy)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_band_is_computed_in_the_dtypes_of_the_forward() -> None:
    """Under autocast gradients come as near as torch's own to those in float64."""
    torch.manual_seed(0)
    plain = LOCAL["deep"]()
    x = torch.randn(2, 4, 12, 8)
    true = stepped(copy.deepcopy(plain).double(), x.double())
    errors = []
    for model in (plain, compress(copy.deepcopy(plain), EXACT)):
        with torch.autocast("cpu", torch.bfloat16):
            found = stepped(model, x)
        assert found[0].dtype == torch.bfloat16
        errors.append([float((a - b).detach().norm()) for a, b in zip(found, true, strict=True)])
    for theirs, mine in zip(*errors, strict=True):
        assert mine <= 2 * theirs


def test_a_weight_that_was_written_to_is_refused() -> None:
    model = compress(LOCAL["head"](), EXACT)
    y = model(torch.randn(1, 4, 8, 8, requires_grad=True))
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backward_has_a_band_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = []
    for band in (1 << 30, 16 * 64 * 8):
        monkeypatch.setattr(cut, "BAND", band)
        layers = [Conv2dNormActivation(16, 16, 3, norm_layer=None) for _ in range(4)]
        model = compress(nn.Sequential(*layers), Policy({"conv": Affine(8, 64)}, chunk=1 << 20))
        y = model(torch.randn(1, 16, 64, 64, requires_grad=True))
        with Meter(model) as meter:
            y.sum().backward()
        peaks.append(meter.peak.peak_bytes)
    assert peaks[1] < peaks[0] - 3 * 4 * 16 * 64 * 64

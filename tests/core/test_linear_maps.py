"""Folding, and low-rank updates multiplied out, against the plain statement on every map."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import near, wake
from timm import layers as tl
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lowtide.core.linear_maps import ACTIVATED, MAPS, NORMS, bottleneck, fold, low_rank, product
from lowtide.core.scale_shift import ScaleShift
from lowtide.core.site import Layout, Role, Site
from lowtide.errors import Unsupported

LINEARS = {
    "linear": (nn.Linear(6, 4), (2, 5, 6)),
    "linear, no bias": (nn.Linear(6, 4, bias=False), (2, 6)),
}
CONVOLUTIONS = {
    "plain": (nn.Conv2d(6, 4, 3, padding=1), (2, 6, 7, 7)),
    "1x1": (nn.Conv2d(6, 4, 1, bias=False), (2, 6, 3, 5)),
    "strided": (nn.Conv2d(6, 4, 3, stride=2), (2, 6, 9, 8)),
    "dilated": (nn.Conv2d(6, 4, 3, dilation=2, padding=2), (2, 6, 7, 7)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2, padding=1), (2, 6, 7, 7)),
    "depthwise": (nn.Conv2d(6, 6, 7, groups=6, padding=3), (2, 6, 9, 9)),
    "depthwise, twice as wide": (nn.Conv2d(6, 12, 3, groups=6), (2, 6, 5, 5)),
    "oblong": (nn.Conv2d(6, 4, (3, 1), stride=(1, 2), padding=(1, 0)), (2, 6, 6, 6)),
    "reflect": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (2, 6, 6, 6)),
    "same": (nn.Conv2d(6, 4, 3, padding="same"), (2, 6, 6, 6)),
    "Conv2dSame": (tl.Conv2dSame(6, 4, 3, stride=2), (2, 6, 7, 7)),
}
NORMED = {
    "LayerNorm": (nn.LayerNorm(6), (2, 5, 6), -1),
    "timm LayerNorm": (tl.LayerNorm(6), (2, 5, 6), -1),
    "LayerNorm2d": (tl.LayerNorm2d(6), (2, 6, 4, 4), 1),
    "BatchNorm2d": (nn.BatchNorm2d(6), (3, 6, 4, 4), 1),
    "GroupNorm": (nn.GroupNorm(2, 6), (2, 6, 4, 4), 1),
    "RMSNorm": (nn.RMSNorm(6), (2, 5, 6), -1),
    **{
        name: (getattr(tl, name)(6), (2, 6, 4, 4) if "2d" in name else (2, 5, 6), axis)
        for name, axis in {
            "RmsNorm": -1,
            "RmsNorm2d": 1,
            "SimpleNorm": -1,
            "SimpleNorm2d": 1,
        }.items()
        if hasattr(tl, name)
    },
}
ALL_MAPS = {**LINEARS, **CONVOLUTIONS}


def ready(module: nn.Module) -> nn.Module:
    return wake(copy.deepcopy(module).double()).eval()


def along(v: Tensor, y: Tensor, axis: int) -> Tensor:
    return v if axis == -1 else v.view(-1, 1, 1)


@pytest.mark.parametrize("kind", ALL_MAPS)
def test_low_rank_equals_its_product(kind: str) -> None:
    module, shape = ALL_MAPS[kind]
    module, x = ready(module), torch.randn(shape, dtype=torch.float64)
    down, up = low_rank(module, 2)
    assert not up(down(x)).any(), "the update starts at zero"
    nn.init.normal_(up.weight)
    delta = product(down, up)
    assert delta.shape == module.weight.shape
    same = copy.deepcopy(module)
    same.weight, same.bias = nn.Parameter(delta), None
    near(up(down(x)), same(x))
    folded = fold(module, delta=delta)
    near(folded(x), module(x) + up(down(x)))


@pytest.mark.parametrize("kind", ALL_MAPS)
def test_low_rank_has_the_rank_it_says(kind: str) -> None:
    module, _ = ALL_MAPS[kind]
    module = ready(module)
    down, up = low_rank(module, 2)
    nn.init.normal_(up.weight)
    groups = getattr(module, "groups", 1)
    for block in product(down, up).flatten(1).chunk(groups):
        assert torch.linalg.matrix_rank(block) == min(2, *block.shape)


def test_factors_start_as_pytorch_draws_them() -> None:
    torch.manual_seed(3)
    down, up = low_rank(nn.Linear(400, 100), 16, out=30)
    bound = 400**-0.5
    assert down.weight.shape == (16, 400) and up.weight.shape == (30, 16)
    assert 0.95 * bound < down.weight.abs().max() <= bound
    assert down.bias is None and up.bias is None and not up.weight.any()


@pytest.mark.parametrize("kind", ALL_MAPS)
def test_fold_into_maps(kind: str) -> None:
    module, shape = ALL_MAPS[kind]
    module, x = ready(module), torch.randn(shape, dtype=torch.float64)
    before = copy.deepcopy(module.state_dict())
    axis = -1 if isinstance(module, nn.Linear) else 1
    out = module.weight.shape[0]
    delta, scale, shift = torch.randn_like(module.weight), torch.randn(out), torch.randn(out)
    scale, shift = scale.double(), shift.double()
    y = module(x)
    a, b = along(scale, y, axis), along(shift, y, axis)
    near(fold(module, scale=scale)(x), a * y)
    near(fold(module, shift=shift)(x), y + b)
    into = torch.randn(6).double()
    near(fold(module, into=into)(x), module(x * along(into, x, axis)))
    moved = copy.deepcopy(module)
    moved.weight = nn.Parameter(module.weight + delta)
    folded = fold(module, delta=delta, scale=scale, shift=shift)
    near(folded(x), a * moved(x) + b)
    assert type(folded) is type(module)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    if module.bias is None:
        assert fold(module, delta=delta, scale=scale).bias is None


@pytest.mark.parametrize("kind", NORMED)
def test_fold_into_norms(kind: str) -> None:
    module, shape, axis = NORMED[kind]
    module, x = ready(module), torch.randn(shape, dtype=torch.float64)
    scale, shift = torch.randn(2, 6, dtype=torch.float64)
    y = module(x)
    near(fold(module, scale=scale)(x), along(scale, y, axis) * y)
    if "bias" in dict(module.named_parameters()):
        both = along(scale, y, axis) * y + along(shift, y, axis)
        near(fold(module, scale=scale, shift=shift)(x), both)
    else:
        assert fold(module, shift=shift) is None
    assert fold(module, into=scale) is None
    assert fold(module, delta=torch.randn(6).double()) is None


def test_tables_of_types_are_covered() -> None:
    tested = {type(m) for m, *_ in (*ALL_MAPS.values(), *NORMED.values())}
    assert tested == set(MAPS) | set(NORMS)


def test_what_computes_something_else_is_not_folded() -> None:
    class Standardised(nn.Conv2d):
        """Looks like a convolution, and its weight is not what multiplies."""

    assert fold(Standardised(2, 2, 1), scale=torch.ones(2)) is None
    assert fold(nn.Identity(), scale=torch.ones(2)) is None
    assert fold(nn.LayerNorm(2, elementwise_affine=False), scale=torch.ones(2)) is None
    assert fold(nn.ConvTranspose2d(2, 2, 1), scale=torch.ones(2)) is None
    with pytest.raises(Unsupported, match="Linear or Conv2d, not Standardised"):
        low_rank(Standardised(2, 2, 1), 1)


def test_a_bottleneck_maps_channels_wherever_they_are() -> None:
    torch.manual_seed(0)
    last = bottleneck(Layout.LAST, 6, 2)
    first = bottleneck(Layout.FIRST, 6, 2)
    for down, up in (last, first):
        assert down.weight.abs().max() > 0
        assert not any(p.abs().max() for p in (down.bias, up.weight, up.bias))
    for one, other in zip(last, first, strict=True):
        wake(one)
        other.weight = nn.Parameter(one.weight[..., None, None])
        other.bias = one.bias
    x = torch.randn(2, 6, 4, 5)
    rows = last[1](last[0](x.permute(0, 2, 3, 1)))
    near(first[1](first[0](x)), rows.permute(0, 3, 1, 2), 1e-5)
    w = last[1].weight @ last[0].weight
    b = last[1].weight @ last[0].bias + last[1].bias
    near(rows, x.permute(0, 2, 3, 1) @ w.T + b, 1e-5)


@pytest.mark.parametrize("kind", ACTIVATED, ids=lambda kind: kind.__name__)
def test_a_norm_with_an_activation_is_scaled_in_front_of_it(kind: type[nn.Module]) -> None:
    groups = {"num_groups": 2} if kind.__name__ == "GroupNormAct" else {}
    norm = wake(kind(6, **groups)).double().eval()
    last = kind.__name__ == "LayerNormAct"
    x = torch.randn((2, 4, 4, 6) if last else (2, 6, 4, 4), dtype=torch.float64)
    layout = Layout.LAST if last else Layout.FIRST
    shape = (1, *x.shape[1:])
    site = Site("norm", Role.NORM, -1, layout, shape, shape, ("weight", "bias"))
    graft = ScaleShift(norm, site).double()
    plain = copy.deepcopy(norm)
    plain.act = nn.Identity()
    gamma, beta = (v.flatten().view(-1, *[1, 1] * (not last)) for v in (graft.gamma, graft.beta))
    near(graft(x), norm.act(gamma * plain(x) + beta), 1e-12)
    near(graft.merged()(x), graft(x), 1e-12)


class First(nn.LayerNorm):
    """For channels that come first, as libraries write it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class AroundOne(nn.LayerNorm):
    """Multiplies by w + 1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sub(x.mean(-1, keepdim=True)).div(x.std(-1, keepdim=True))


def test_a_derived_norm_absorbs_what_it_is_seen_to_scale() -> None:
    norm = wake(First(6)).double()
    scale, shift = torch.randn(2, 6, dtype=torch.float64)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    folded = fold(norm, scale=scale, shift=shift)
    assert type(folded) is First
    near(folded(x), norm(x) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), 1e-12)
    assert fold(wake(AroundOne(6)).double(), scale=scale, shift=shift) is None


def test_a_frozen_norm_absorbs_into_its_buffers() -> None:
    norm = FrozenBatchNorm2d(6).double()
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2)
    scale, shift = torch.randn(2, 6, dtype=torch.float64)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    folded = fold(norm, scale=scale, shift=shift)
    assert folded is not None
    assert not list(folded.parameters())
    assert folded.state_dict().keys() == norm.state_dict().keys()
    near(folded(x), norm(x) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), 1e-12)

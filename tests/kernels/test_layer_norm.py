"""The gradients of a layer norm from codes equal the formula, and those of unpacking first."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowtide.codecs.affine import Affine
from lowtide.codecs.exact import Exact
from lowtide.kernels.affine import affine_pack, affine_unpack
from lowtide.kernels.layer_norm import layer_norm_backward
from lowtide.ops import layer_norm
from lowtide.ops.layer_norm import LAYER_NORM
from lowtide.ops.saved import saved


def gradients(codec: Affine, tensors: tuple[Tensor | None, ...], dy: Tensor) -> list[Tensor]:
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    return list(torch.autograd.grad(saved(LAYER_NORM, codec, *tensors, eps=1e-5), wanted, dy))


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 24), (7, 13), (24,), (0, 8)])
def test_the_definition_is_the_gradient_at_the_unpacked_input(
    shape: tuple[int, ...], weight: bool
) -> None:
    """In float64, against autograd through a normalisation written out."""
    given = dict(dtype=torch.float64)
    x_hat, dy = torch.randn(shape, **given), torch.randn(shape, **given)
    rstd = torch.rand(*shape[:-1], 1, **given) + 0.5
    w = torch.rand(shape[-1], **given) + 0.5 if weight else None
    packed = affine_pack(x_hat, None, None, 4, 8, torch.float64)
    ours = layer_norm_backward(dy, *packed, rstd, w, 4, 8, True)
    hat = affine_unpack(*packed, list(shape), 4, 8, torch.float64)
    g = dy if w is None else dy * w
    # The tangent of x^ in x is rstd (1 - 1 1^T / C - x^ x^T / C), as a matrix for each row.
    square = torch.eye(shape[-1], **given) - 1 / shape[-1]
    square = square - hat[..., :, None] * hat[..., None, :] / shape[-1]
    dx = rstd * torch.einsum("...ij,...j->...i", square, g)
    theirs = (dx, (dy * hat).view(-1, shape[-1]).sum(0), dy.view(-1, shape[-1]).sum(0))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("needs", [(1, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (0, 1, 1)])
def test_where_it_runs_the_gradients_are_those_of_unpacking_first(
    needs: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, dy = (torch.randn(3, 7, 20, dtype=dtype) for _ in range(2))
    w, b = (torch.rand(20, dtype=dtype) + 0.5 for _ in range(2))
    given = tuple(t.requires_grad_(bool(n)) for t, n in zip((x, w, b), needs, strict=True))
    codec = Affine(6, 16, stats=torch.bfloat16)
    unpacked = gradients(codec, given, dy)
    calls = []
    monkeypatch.setattr(layer_norm, "FUSED", {"cpu"})
    monkeypatch.setattr(
        layer_norm, "layer_norm_backward", lambda *a: calls.append(a) or layer_norm_backward(*a)
    )
    fused = gradients(codec, given, dy)
    assert len(calls) == needs[0]  # without dx there is nothing to gain
    close = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(fused, unpacked, **close)


@pytest.mark.parametrize("codec", [Affine(4, "row"), Affine(4, "tensor"), Exact()])
def test_other_codecs_are_unpacked(codec: Affine, monkeypatch: pytest.MonkeyPatch) -> None:
    given, dy = (torch.randn(3, 20, requires_grad=True), None, None), torch.randn(3, 20)
    unpacked = gradients(codec, given, dy)
    monkeypatch.setattr(layer_norm, "FUSED", {"cpu"})
    assert torch.equal(gradients(codec, given, dy)[0], unpacked[0])


def test_a_single_row_without_a_gradient_of_its_own() -> None:
    x, dy = torch.randn(6), torch.randn(6)
    w, b = (torch.randn(6, requires_grad=True) for _ in range(2))
    ours = gradients(Exact(), (x, w, b), dy)
    theirs = torch.autograd.grad(F.layer_norm(x, (6,), w, b), (w, b), dy)
    torch.testing.assert_close(ours, list(theirs))


@pytest.mark.parametrize("trained", [True, False])
def test_torch_takes_it_as_an_op_of_its_own(trained: bool) -> None:
    packed = affine_pack(torch.randn(4, 50), None, None, 4, 64, torch.bfloat16)
    given = (torch.randn(4, 50), *packed, torch.rand(4, 1), torch.rand(50), 4, 64, trained)
    torch.library.opcheck(layer_norm_backward, given)


def test_under_autocast_what_is_float32_anyway_is_normalised_once(monkeypatch) -> None:
    x, w, b = (torch.randn(*shape, requires_grad=True) for shape in ((3, 20), (20,), (20,)))
    calls, native = [], torch.native_layer_norm
    monkeypatch.setattr(torch, "native_layer_norm", lambda *a: calls.append(a) or native(*a))
    with torch.autocast("cpu", torch.bfloat16):
        y = saved(LAYER_NORM, Affine(4, 16), x, w, b, eps=1e-5)
        theirs = F.layer_norm(x, (20,), w, b)
    assert len(calls) == 1 and y.dtype == theirs.dtype and torch.equal(y, theirs)

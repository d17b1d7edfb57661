"""Lengths of vectors: `torch.linalg.vector_norm` and `torch.norm`, Euclidean."""

from __future__ import annotations

from collections.abc import Callable
from types import NotImplementedType

import torch
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from .case import Case
from .from_inputs import X, function_of
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

Axes = tuple[int, ...]
Lengths = Callable[[Tensor], Tensor]


def _forward(
    needs: Needs, x: Tensor, *, lengths: Lengths, axes: Axes, shape: torch.Size
) -> Forward:
    return Forward(lengths(x), (Residue(x),))


def _backward(
    needs: Needs,
    residues: tuple[Tensor],
    extras: Tensors,
    dy: Tensor,
    *,
    lengths: Lengths,
    axes: Axes,
    shape: torch.Size,
) -> tuple[Tensor]:
    (x,) = residues
    return (x * _factor(x, dy, axes),)


def _packed(
    needs: Needs,
    codec: Codec,
    packed: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    lengths: Lengths,
    axes: Axes,
    shape: torch.Size,
) -> tuple[Tensor] | NotImplementedType:
    """Make the gradient in the place of x, which nobody else has."""
    if not isinstance(codec, Affine):
        return NotImplemented
    x = codec.unpack(packed, shape, dy.dtype)
    return (x.mul_(_factor(x, dy, axes)),)


def _factor(x: Tensor, dy: Tensor, axes: Axes) -> Tensor:
    length = torch.linalg.vector_norm(x, 2, axes, keepdim=True)
    # torch's own choice where there is no gradient.
    return torch.where(length == 0, 0, dy.reshape(length.shape) / length)


VECTOR_NORM = Op(_forward, _backward, packed=_packed)
"""y = |x| along some axes; dx = x dy / |x|, 0 where |x| is. Residue: x, of which |x| is made again.

Options: `lengths` is torch's function of x; `axes` those it goes over; `shape` of x.

Saves:
    What the codec keeps of the numbers in x.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x, axes = call.argument(0, "input"), call.argument(2, "dim")
    if "norm" not in codecs or torch.compiler.is_compiling() or not _is_euclidean(call):
        return NotImplemented
    if not (isinstance(x, Tensor) and x.is_floating_point() and x.requires_grad and x.ndim):
        return NotImplemented
    if call.kwargs.get("out") is not None or call.argument(4, "dtype") not in (None, x.dtype):
        return NotImplemented
    over = (axes,) if isinstance(axes, int) else tuple(axes or range(x.ndim))
    options = {"lengths": function_of(call, X), "axes": over, "shape": x.shape}
    return saved(VECTOR_NORM, codecs["norm"], x, **options)


def _is_euclidean(call: Call) -> bool:
    name = "ord" if call.function is torch.linalg.vector_norm else "p"
    default = "fro" if call.function in (torch.norm, Tensor.norm) else 2
    p = call.argument(1, name, default)
    return p in (2, "fro") or p is None


TIGHT: dict[str, Codec] = {"norm": Affine(8, 64, stats=torch.bfloat16)}
CALLS: Calls = dict.fromkeys((torch.linalg.vector_norm, torch.norm, Tensor.norm), _answer)


def _case(lengths: Lengths, axes: Axes) -> Case:
    shape = (3, 7, 5)
    options = {"lengths": lengths, "axes": axes, "shape": torch.Size(shape)}
    return Case(VECTOR_NORM, (shape,), lengths, lambda n: [shape], options)


CASES = {
    "norm": _case(lambda x: torch.linalg.vector_norm(x, dim=(0, 1), keepdim=True), (0, 1)),
    "norm_method": _case(lambda x: x.norm(p=2, dim=-1), (-1,)),
    "norm_whole": _case(torch.norm, (0, 1, 2)),
}

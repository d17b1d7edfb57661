"""Softmax over the last axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Residue
from .case import Case
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved


def _forward(needs: Needs, x: Tensor, *, dtype: torch.dtype | None = None) -> Forward:
    y = torch.softmax(x, -1, dtype=dtype)
    return Forward(y, (Residue(y),))


def _backward(
    needs: Needs, residues: tuple[Tensor], extras: Tensors, dy: Tensor, **_: object
) -> tuple[Tensor]:
    return (softmax_backward(dy, residues[0]),)


def softmax_backward(dy: Tensor, y: Tensor, own: bool = False) -> Tensor:
    """Compute the gradient of a softmax from its output.

    Args:
        dy: Gradient of the output.
        y: The output.
        own: Whether nobody reads dy hereafter, so that the result may take its place.

    Returns:
        y (dy - sum(dy y)), in the shape of `y`.
    """
    if own and dy.dtype == y.dtype and not torch.compiler.is_compiling():
        # A row is summed before it is written, and written number by number.
        into = torch.ops.aten._softmax_backward_data.out
        dx: Tensor = into(dy, y, -1, y.dtype, grad_input=dy)
        return dx
    return torch.ops.aten._softmax_backward_data(dy, y, -1, y.dtype)


SOFTMAX = Op(_forward, _backward)
"""y = exp(x) / sum(exp(x)), dx = y (dy - sum(dy y)) over the last axis. Residue: y.

Saves:
    What the codec keeps of n numbers; a product with y behind it shares them.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x, axis = call.argument(0, "input"), call.argument(1, "dim")
    # F.softmax has a private argument between dim and dtype.
    dtype = call.kwargs.get("dtype") if call.function is F.softmax else call.argument(2, "dtype")
    if "softmax" not in codecs or not x.requires_grad or axis not in (-1, x.ndim - 1):
        return NotImplemented
    codec, kept = codecs["softmax"], dtype or x.dtype
    if codec.nbytes(x.shape, kept) > x.numel() * kept.itemsize:
        return NotImplemented  # rows of a number or two
    return saved(SOFTMAX, codec, x, dtype=dtype)


TIGHT = {"softmax": Affine(8, "row", stats=torch.bfloat16)}
S2A = {"softmax": lambda rounding: Affine(4, "row", rounding)}
CALLS: Calls = {
    F.softmax: _answer,
    torch.softmax: _answer,
    Tensor.softmax: _answer,
}
CASES = {
    "softmax": Case(
        SOFTMAX,
        ((3, 7, 5),),
        lambda x: torch.softmax(x, -1),
        lambda n: [(3, 7, 5)],
        made=True,
    )
}

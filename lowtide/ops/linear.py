"""Linear layers whose weight trains: the input is kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Residue
from ..codecs.exact import Exact
from .case import Case
from .saved import SMALL, Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

POOLED = 1 << 16
"""So many numbers in rows (B, C) are pooled features, 32 images of 2048: few bytes, and all that a
classifier learns from. More are regions or tokens."""


def _forward(needs: Needs, x: Tensor, weight: Tensor, bias: Tensor | None) -> Forward:
    residues = (Residue(x),) if needs[1] else ()
    y = F.linear(x, weight.to(x.dtype), bias)
    return Forward(y, residues, (weight if needs[0] else None,))


def _backward(needs: Needs, residues: tuple[Tensor, ...], extras: Tensors, dy: Tensor) -> Tensors:
    (weight,) = extras
    rows = dy.flatten(0, -2)
    dx = torch.matmul(dy, weight.to(dy.dtype)) if weight is not None else None
    dw = rows.mT @ residues[0].flatten(0, -2) if needs[1] else None
    return dx, dw, rows.sum(0) if needs[2] else None


LINEAR = Op(_forward, _backward)
"""y = x W^T + b; dx = dy W, dW = dy^T x, db = sum(dy). Residue: x if W wants a gradient.

Saves:
    What the codec keeps of the numbers in x; W itself is no copy.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x, weight = call.argument(0, "input"), call.argument(1, "weight")
    bias = call.argument(2, "bias")
    cast = torch.is_autocast_enabled(x.device.type)
    if "linear" not in codecs or not (weight.requires_grad or cast) or x.ndim < 2:
        return NotImplemented
    # What a low rank is made wide from is few bytes for the work.
    few = x.ndim == 2 and x.numel() <= POOLED or x.shape[-1] * SMALL <= len(weight)
    codec = Exact() if few else codecs["linear"]
    return saved(LINEAR, codec, *but_frozen(autocast((x, weight, bias)), weight))


def autocast(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Cast as autocast would, outside of the Function.

    Inside, where no gradient is recorded, autocast would remember a cast weight without its history
    and hand it to the next layer that shares the weight.

    Args:
        tensors: Arguments of a layer that autocast runs in low precision.

    Returns:
        The same, or casts with a gradient.
    """
    device = next(t for t in tensors if t is not None).device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    low = torch.get_autocast_dtype(device)
    return tuple(
        None if t is None else t.to(low) if t.dtype == torch.float32 else t for t in tensors
    )


def but_frozen(cast: tuple[Tensor | None, ...], weight: Tensor) -> tuple[Tensor | None, ...]:
    """Leave a frozen weight as it is: the op casts it, and keeps no cast copy for the backward.

    Args:
        cast: Input, weight and bias, cast by `autocast`.
        weight: The weight as it was.

    Returns:
        The three, the weight cast only if it trains.
    """
    x, low, bias = cast
    return x, low if weight.requires_grad else weight, bias


TIGHT = {"linear": Affine(8, 64, stats=torch.bfloat16)}
PRODUCTS = (F.linear,)
CALLS: Calls = {F.linear: _answer}
CASES = {
    name: Case(
        LINEAR,
        ((2, 3, 4), (5, 4), bias),
        F.linear,
        lambda n: [(2, 3, 4)] * n[1],
        as_is=lambda n: [1] if n[0] else [],
        linear=True,
    )
    for name, bias in (("linear", (5,)), ("linear_plain", None))
}

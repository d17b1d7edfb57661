"""Convolutions: the input is kept only if the weight trains, which torch does not see to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Residue
from .case import Case
from .linear import autocast, but_frozen
from .saved import Answer, Call, Codecs, Forward, Needs, Op, Tensors, saved

Pairs = tuple[list[int], list[int], list[int]]


def _forward(
    needs: Needs,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    shape: torch.Size,
    pairs: Pairs,
    groups: int,
) -> Forward:
    residues = (Residue(x),) if needs[1] else ()
    y = torch.conv2d(x, weight.to(x.dtype), bias, *pairs, groups)
    return Forward(y, residues, (weight if needs[0] or needs[1] else None,))


def _backward(
    needs: Needs,
    residues: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    shape: torch.Size,
    pairs: Pairs,
    groups: int,
) -> Tensors:
    (weight,) = extras
    db = dy.sum((0, 2, 3)) if needs[2] else None
    if weight is None:
        return None, None, db
    # Only its shape is looked at where no weight trains.
    x = residues[0] if residues else dy.new_empty(1).expand(shape)
    x, weight = x.to(dy.dtype), weight.to(dy.dtype)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, *pairs, False, [0, 0], groups, [needs[0], needs[1], False]
    )
    return dx, dw, db


CONV = Op(_forward, _backward)
"""y = W * x + b in two dimensions. Residue: x if W wants a gradient.

Options: `shape` of x, `pairs` = (stride, padding, dilation), `groups`. A weight in fewer bytes than
x is widened for each product.

Saves:
    What the codec keeps of the numbers in x; nothing if the weight is frozen, where torch keeps x.
"""


def _answer(codecs: Codecs, call: Call) -> Any:
    x, weight = call.argument(0, "input"), call.argument(1, "weight")
    bias = call.argument(2, "bias")
    padding = call.argument(4, "padding", 0)
    wanted = any(t is not None and t.requires_grad for t in (x, weight, bias))
    if "conv" not in codecs or x.ndim != 4 or isinstance(padding, str) or not wanted:
        return NotImplemented
    stride, dilation = (
        call.argument(3, "stride", 1),
        call.argument(5, "dilation", 1),
    )
    return saved(
        CONV,
        codecs["conv"],
        *but_frozen(autocast((x, weight, bias)), weight),
        shape=x.shape,
        pairs=(pair(stride), pair(padding), pair(dilation)),
        groups=call.argument(6, "groups", 1),
    )


def pair(value: Any) -> list[int]:
    """Read a size that may be one number for both axes.

    Args:
        value: One integer, or one or two in a sequence.

    Returns:
        Height and width.
    """
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


TIGHT = {"conv": Affine(8, 64, stats=torch.bfloat16)}
CALLS: dict[Callable[..., Any], Answer] = {F.conv2d: _answer}
CASES = {
    "conv": Case(
        CONV,
        ((2, 4, 6, 6), (6, 2, 3, 3), (6,)),
        lambda x, w, b: F.conv2d(x, w, b, 2, 1, 1, 2),
        lambda n: [(2, 4, 6, 6)] * n[1],
        {"shape": torch.Size((2, 4, 6, 6)), "pairs": ([2, 2], [1, 1], [1, 1]), "groups": 2},
        as_is=lambda n: [1] if n[0] or n[1] else [],
        linear=True,
    )
}

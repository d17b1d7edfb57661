"""PReLU: a slope below zero that may train."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from ..codecs.sign import Sign
from . import activation_derivatives as slopes
from .case import Case
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved


def _forward(needs: Needs, x: Tensor, weight: Tensor) -> Forward:
    above = Residue(x, slopes.relu, pointwise=True)
    below = Residue(x, _below, pointwise=True)
    residues = (*([above] * needs[0]), *([below] * needs[1]))
    return Forward(F.prelu(x, weight), residues, (weight,))


def _backward(needs: Needs, residues: tuple[Tensor, ...], extras: Tensors, dy: Tensor) -> Tensors:
    (weight,) = extras
    assert weight is not None
    slope = weight.view(-1, *(1,) * max(0, dy.ndim - 2))
    dx = torch.where(residues[0] > 0.5, dy, dy * slope) if needs[0] else None
    dw = (dy * residues[-1]).sum_to_size(slope.shape).view(weight.shape) if needs[1] else None
    return dx, dw


def _below(x: Tensor) -> Tensor:
    return x.clamp(max=0)


PRELU = Op(_forward, _backward)
"""y = max(x, 0) + w min(x, 0), w one number or one per channel; dw = sum(dy min(x, 0)).

Residues: 1 where x > 0, else 0, if x wants a gradient; min(x, 0) if w does. Extras: w.

Saves:
    What the codecs keep of n numbers, once or twice; torch keeps x.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x, weight = call.argument(0, "input"), call.argument(1, "weight")
    if "prelu" not in codecs or not (x.requires_grad or weight.requires_grad):
        return NotImplemented
    # Which side of zero a number was is one bit, whatever the other is kept by.
    each = (*([Sign()] * x.requires_grad), *([codecs["prelu"]] * weight.requires_grad))
    return saved(PRELU, each, x, weight)


def _case(x: tuple[int, ...], weight: int) -> Case:
    return Case(
        PRELU,
        (x, (weight,)),
        F.prelu,
        lambda n: [x] * sum(n),
        as_is=lambda n: [1],
        made=True,
    )


TIGHT: dict[str, Codec] = {"prelu": Affine(8, 64, stats=torch.bfloat16)}
CALLS: Calls = {F.prelu: _answer, torch.prelu: _answer}
CASES = {"prelu": _case((3, 7, 5), 7), "prelu_one": _case((3, 7, 5), 1)}

"""Quotients, where a divisor that wants a gradient makes the dividend worth keeping."""

from __future__ import annotations

import torch
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from .case import Case, Shape
from .formula import written
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved
from .unary import into_first


def _forward(needs: Needs, a: Tensor, b: Tensor, *, shape: torch.Size) -> Forward:
    return Forward(torch.div(a, b), (Residue(a),) if needs[1] else (), (b,))


def _backward(
    needs: Needs, residues: tuple[Tensor, ...], extras: Tensors, dy: Tensor, *, shape: torch.Size
) -> Tensors:
    (b,), db = extras, None
    assert b is not None
    da = dy / b
    if needs[1]:
        db = (-da * (residues[0] / b)).sum_to_size(b.shape)
    return da.sum_to_size(shape) if needs[0] else None, db


DIV = Op(_forward, _backward)
"""y = a / b element by element, da = dy / b, db = -da a / b, summed where they were broadcast.

Residue: a if b wants a gradient. Extras: b, for the error of a code near zero has no bound there.
Options: `shape` of a.

Saves:
    What the codec keeps of the numbers in a; b as torch does.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    a, b = call.args if len(call.args) == 2 else (None, None)
    if "div" not in codecs or call.kwargs or not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return NotImplemented
    if not (b.requires_grad and a.is_floating_point()) or a.numel() < b.numel():
        return NotImplemented
    return saved(DIV, codecs["div"], a, b, shape=a.shape)


def _case(a: Shape, b: Shape) -> Case:
    return Case(
        DIV,
        (a, b),
        torch.div,
        lambda n: [a] * n[1],
        {"shape": torch.Size(a)},
        as_is=lambda n: [1],
    )


TIGHT: dict[str, Codec] = {"div": Affine(8, 64, stats=torch.bfloat16)}
FOLLOWED = (torch.div, Tensor.div, Tensor.__truediv__)
CALLS: Calls = {
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), written(_answer)),
    **dict.fromkeys((Tensor.div_, Tensor.__itruediv__), written(into_first("div", _answer))),
    Tensor.__rdiv__: written(),
}
CASES = {"div": _case((3, 7, 5), (3, 7, 5)), "div_length": _case((3, 7, 5), (3, 7, 1))}

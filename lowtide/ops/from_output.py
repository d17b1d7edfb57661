"""Functions whose slope follows from their value: sigmoid, tanh, exp."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from .case import Case
from .formula import written
from .saved import Answer, Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved
from .unary import overwritten

Function = Callable[[Tensor], Tensor]
Backward = Callable[[Tensor, Tensor], Tensor]


def _forward(needs: Needs, x: Tensor, *, call: Function, **_: object) -> Forward:
    y = call(x)
    return Forward(y, (Residue(y),))


def _backward(
    needs: Needs,
    residues: tuple[Tensor],
    extras: Tensors,
    dy: Tensor,
    *,
    backward: Backward,
    **_: object,
) -> tuple[Tensor]:
    return (backward(dy, residues[0]),)


FROM_OUTPUT = Op(_forward, _backward)
"""y = f(x), dx = dy f'(x) as a function of y: y (1 - y) for a sigmoid, 1 - y^2 for tanh, y for exp.

Residue: y. Options: `call` is f, `backward` gives dx from dy and y.

Saves:
    What the codec keeps of n numbers; a product that reads y shares them.
"""

BACKWARD: dict[str, tuple[Function, Backward]] = {
    "sigmoid": (torch.sigmoid, torch.ops.aten.sigmoid_backward),
    "tanh": (torch.tanh, torch.ops.aten.tanh_backward),
    "exp": (torch.exp, torch.mul),
}


def _answer(name: str, in_place: bool = False) -> Answer:
    call, backward = BACKWARD[name]

    def answered(codecs: Codecs, given: Call) -> Result:
        x = given.argument(0, "input")
        # A gate per channel is small beside what it scales, and the product keeps it as it is.
        if name not in codecs or not x.requires_grad or x.ndim < 2 or x.shape[-1] == 1:
            return NotImplemented
        y = saved(FROM_OUTPUT, codecs[name], x, call=call, backward=backward)
        return overwritten(x, y, in_place)

    return answered


def _case(name: str) -> Case:
    call, backward = BACKWARD[name]
    shape, options = (3, 7, 5), {"call": call, "backward": backward}
    return Case(FROM_OUTPUT, (shape,), call, lambda n: [shape], options, made=True)


TIGHT: dict[str, Codec] = dict.fromkeys(BACKWARD, Affine(8, 64, stats=torch.bfloat16))
CALLS: Calls = {
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, F.sigmoid), written(_answer("sigmoid"))),
    **dict.fromkeys((torch.sigmoid_, Tensor.sigmoid_), written(_answer("sigmoid", in_place=True))),
    **dict.fromkeys((torch.tanh, Tensor.tanh, F.tanh), written(_answer("tanh"))),
    **dict.fromkeys((torch.tanh_, Tensor.tanh_), written(_answer("tanh", in_place=True))),
    **dict.fromkeys((torch.exp, Tensor.exp), written(_answer("exp"))),
    **dict.fromkeys((torch.exp_, Tensor.exp_), written(_answer("exp", in_place=True))),
}
CASES = {name: _case(name) for name in BACKWARD}

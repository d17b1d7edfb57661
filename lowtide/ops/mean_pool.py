"""Means over windows, or over the parts of a grid: nothing of their input is needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.base import Codec
from ..codecs.exact import Exact
from .case import Case, Shape
from .conv import along
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

Function = Callable[..., Tensor]


def _forward(needs: Needs, x: Tensor, *, call: Function, **_: object) -> Forward:
    # Only the shape of x is looked at in backward.
    return Forward(call(x), (), (x.new_empty(1).expand(x.shape),))


def _backward(
    needs: Needs,
    residues: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    backward: Function,
    **_: object,
) -> Tensors:
    return (backward(dy, extras[0]),)


MEAN_POOL = Op(_forward, _backward)
"""y = the mean of each window, or of each part of the grid; dx spreads dy over them. No residue.

Options: `call` computes y, `backward` gives dx from dy and a tensor of x's shape.

Saves:
    One number that stands for a tensor of x's shape; torch keeps x.
"""


def _line(backward: Function, dy: Tensor, like: Tensor, *given: object) -> Tensor:
    """Take a line for a plane of one row."""
    return backward(dy.unsqueeze(-2), like.unsqueeze(-2), *given).squeeze(-2)


_ADAPTIVE: dict[Function, Function] = {
    F.adaptive_avg_pool1d: partial(_line, torch.ops.aten._adaptive_avg_pool2d_backward),
    F.adaptive_avg_pool2d: torch.ops.aten._adaptive_avg_pool2d_backward,
    F.adaptive_avg_pool3d: torch.ops.aten._adaptive_avg_pool3d_backward,
}
_AVERAGE: dict[Function, tuple[int, Function]] = {
    F.avg_pool1d: (1, partial(_line, torch.ops.aten.avg_pool2d_backward)),
    F.avg_pool2d: (2, torch.ops.aten.avg_pool2d_backward),
    F.avg_pool3d: (3, torch.ops.aten.avg_pool3d_backward),
}


def _options(call: Call) -> dict[str, Function]:
    """Say how a call is made of x alone, and what gives its gradient."""
    if call.function in _ADAPTIVE:
        given: tuple[object, ...] = (call.argument(1, "output_size"),)
        return {
            "call": partial(_given, call.function, given),
            "backward": _ADAPTIVE[call.function],
        }
    axes, backward = _AVERAGE[call.function]
    kernel, stride = along(call.argument(1, "kernel_size"), axes), call.argument(2, "stride")
    step, edge = along(stride or kernel, axes), along(call.argument(3, "padding", 0), axes)
    ceil, inside = call.argument(4, "ceil_mode", False), call.argument(5, "count_include_pad", True)
    divisor = (call.argument(6, "divisor_override"),) if axes > 1 else ()
    given = (kernel, step, edge, ceil, inside, *divisor)
    if axes == 1:
        kernel, step, edge, divisor = [1, *kernel], [1, *step], [0, *edge], (None,)
    spread = (kernel, step, edge, ceil, inside, *divisor)
    return {
        "call": partial(_given, call.function, given),
        "backward": lambda dy, like: backward(dy, like, *spread),
    }


def _given(function: Function, given: tuple[object, ...], x: Tensor) -> Tensor:
    return function(x, *given)


def _answer(codecs: Codecs, call: Call) -> Result:
    x = call.argument(0, "input")
    if "mean_pool" not in codecs or not x.requires_grad:
        return NotImplemented
    return saved(MEAN_POOL, codecs["mean_pool"], x, **_options(call))


TIGHT: dict[str, Codec] = {"mean_pool": Exact()}
CALLS: Calls = dict.fromkeys((*_ADAPTIVE, *_AVERAGE), _answer)


def _case(shape: Shape, function: Function, *given: object, **named: object) -> Case:
    return Case(
        MEAN_POOL,
        (shape,),
        lambda x: function(x, *given, **named),
        options=_options(Call(function, (None, *given), named)),
        beside=lambda n: 4,
    )


CASES = {
    "mean_pool": _case((2, 3, 7, 6), F.adaptive_avg_pool2d, (3, 2)),
    "mean_pool_line": _case((2, 3, 7), F.adaptive_avg_pool1d, 3),
    "mean_pool_volume": _case((2, 3, 4, 3, 5), F.adaptive_avg_pool3d, (2, None, 3)),
    "average": _case((2, 3, 7, 6), F.avg_pool2d, 3, 2, (1, 0), ceil_mode=True),
    "average_within": _case((2, 3, 7, 6), F.avg_pool2d, (2, 3), padding=1, count_include_pad=False),
    "average_line": _case((2, 3, 7), F.avg_pool1d, 3, 2, 1),
    "average_volume": _case((2, 3, 4, 3, 5), F.avg_pool3d, 2, divisor_override=5),
}

"""The largest or smallest along axes: which numbers they were."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..codecs.base import Codec, Residue
from ..codecs.sign import Sign
from .case import Case
from .saved import Answer, Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

Function = Callable[..., Tensor]
Axes = tuple[int, ...]


def _forward(needs: Needs, x: Tensor, *, call: Function, axes: Axes, keepdim: bool) -> Forward:
    y = call(x, axes, keepdim)
    found = x == _kept_axes(y, axes, keepdim)
    return Forward(y, (Residue(found.to(x.dtype)),))


def _backward(
    needs: Needs,
    residues: tuple[Tensor],
    extras: Tensors,
    dy: Tensor,
    *,
    axes: Axes,
    keepdim: bool,
    **_: object,
) -> tuple[Tensor]:
    (found,) = residues
    count = found.sum(axes, keepdim=True).clamp_(min=1)
    return (_kept_axes(dy, axes, keepdim) / count * found,)


EXTREME = Op(_forward, _backward)
"""y = the largest (or smallest) number along axes; dx is dy where it stood, shared by equals.

Residue: 1 where it stood, else 0. Options: `call` is the function, `axes` and `keepdim` its
arguments.

Saves:
    What the codec keeps of n zeros and ones; torch keeps x and y.
"""


def _kept_axes(y: Tensor, axes: Axes, keepdim: bool) -> Tensor:
    return y if keepdim else y[_places(y.ndim + len(axes), axes)]


def _places(ndim: int, axes: Axes) -> tuple[slice | None, ...]:
    reduced = {axis % ndim for axis in axes}
    return tuple(None if i in reduced else slice(None) for i in range(ndim))


def _answer(function: Function) -> Answer:
    def answered(codecs: Codecs, call: Call) -> Result:
        x, axes = call.argument(0, "input"), call.argument(1, "dim", ())
        if "extreme" not in codecs or not x.requires_grad or call.argument(3, "out") is not None:
            return NotImplemented
        axes = (axes,) if isinstance(axes, int) else tuple(axes) or tuple(range(x.ndim))
        if not axes or x.numel() == 0:
            return NotImplemented
        keepdim = call.argument(2, "keepdim", False)
        options = {"call": function, "axes": axes, "keepdim": keepdim}
        return saved(EXTREME, codecs["extreme"], x, **options)

    return answered


def _case(function: Function, axes: Axes, keepdim: bool) -> Case:
    shape = (3, 8, 5)
    options = {"call": function, "axes": axes, "keepdim": keepdim}

    def plain(x: Tensor) -> Tensor:
        return function(x, axes, keepdim)

    return Case(EXTREME, (shape,), plain, lambda n: [shape], options, made=True)


TIGHT: dict[str, Codec] = {"extreme": Sign()}
CALLS: Calls = {
    **dict.fromkeys((torch.amax, Tensor.amax), _answer(torch.amax)),
    **dict.fromkeys((torch.amin, Tensor.amin), _answer(torch.amin)),
}
CASES = {
    "amax": _case(torch.amax, (1,), keepdim=False),
    "amax_axes": _case(torch.amax, (-1, 0), keepdim=False),
    "amin": _case(torch.amin, (2,), keepdim=True),
}

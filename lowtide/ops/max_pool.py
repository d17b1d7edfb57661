"""Max pooling: which of its window a maximum was."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from .case import Case
from .conv import along
from .fan import Fan, gathered, hand
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

TAPS = 16
"""Places of a window that four bits tell apart."""

Window = tuple[list[int], list[int], list[int], list[int]]


def _max_forward(
    needs: Needs, x: Tensor, *, window: Window, ceil: bool, fan: Fan | None = None
) -> Forward:
    y, found = F.max_pool2d_with_indices(x, *window, ceil)
    (_, columns), dilation = window[0], window[3]
    width, origin = x.shape[-1], _origins(y, window)
    row, column = found // width - origin[0], found % width - origin[1]
    tap = row // dilation[0] * columns + column // dilation[1]
    return Forward(y, (Residue(tap.to(x.dtype)),), (x.new_empty(1).expand(x.shape),))


def _max_backward(
    needs: Needs,
    residues: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    window: Window,
    ceil: bool,
    fan: Fan | None = None,
) -> Tensors:
    (like,) = extras
    assert like is not None
    origin, kernel, dilation = _origins(dy, window), window[0], window[3]
    tap = residues[0].round().long()
    row = origin[0] + tap // kernel[1] * dilation[0]
    column = origin[1] + tap % kernel[1] * dilation[1]
    # A codec that errs by half a place or more may point beside the grid.
    row, column = row.clamp_(0, like.shape[-2] - 1), column.clamp_(0, like.shape[-1] - 1)
    found = row.mul_(like.shape[-1]).add_(column)
    dx = torch.ops.aten.max_pool2d_with_indices_backward(dy, like, *window, ceil, found)
    return (hand(fan, dx),)


MAX_POOL = Op(_max_forward, _max_backward)
"""y = the largest number of each window; dx is dy where it stood.

Residue: its place in the window, 0 to h w - 1, rounded in backward, so that a codec that errs by
less than a half loses nothing. Options: `window` = (kernel, stride, padding, dilation), `ceil`;
`fan`, where dx is added up.

Saves:
    What the codec keeps of the numbers in y; torch keeps x, and 8 bytes for each of y.
"""


def _origins(y: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Say in which row and column of the input each window begins."""
    _, stride, padding, _ = window
    row, column = (
        torch.arange(n, device=y.device) * s - p
        for n, s, p in zip(y.shape[-2:], stride, padding, strict=True)
    )
    return row[:, None], column


def _answer_max(codecs: Codecs, call: Call) -> Result:
    x, kernel = call.argument(0, "input"), along(call.argument(1, "kernel_size"))
    stride = call.argument(2, "stride")
    given = (stride or kernel, call.argument(3, "padding", 0), call.argument(4, "dilation", 1))
    known = "max_pool" in codecs and kernel[0] * kernel[1] <= TAPS
    if not known or not x.requires_grad or call.argument(6, "return_indices", False):
        return NotImplemented
    window = (kernel, *(along(value) for value in given))
    alias, fan = gathered(x)
    options = {"window": window, "ceil": call.argument(5, "ceil_mode", False), "fan": fan}
    return saved(MAX_POOL, codecs["max_pool"], alias, **options)


# A place in a window is an integer up to 15: kept without loss.
TIGHT: dict[str, Codec] = {"max_pool": Affine(4, "tensor")}
CALLS: Calls = {F.max_pool2d: _answer_max}


def _case(*window: list[int], ceil: bool = False) -> Case:
    def plain(x: Tensor) -> Tensor:
        return F.max_pool2d(x, *window, ceil)  # type: ignore[call-overload]

    out = tuple(plain(torch.zeros(2, 3, 9, 7)).shape)
    return Case(
        MAX_POOL,
        ((2, 3, 9, 7),),
        plain,
        lambda n: [out],
        {"window": window, "ceil": ceil},
        lambda n: 4,
        made=True,
    )


CASES = {
    "max_pool": _case([3, 2], [2, 1], [1, 0], [1, 2]),
    "max_pool_dilated": _case([2, 3], [1, 2], [1, 0], [3, 2]),
    "max_pool_even": _case([2, 2], [2, 2], [0, 0], [1, 1], ceil=True),
}

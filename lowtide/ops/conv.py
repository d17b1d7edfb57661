"""Convolutions: the input is kept only if the weight trains; torch keeps it always."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from ..codecs.exact import Exact
from .case import Case, Shape
from .fan import Fan, begin, gathered, hand
from .lineage import derived
from .linear import autocast, but_frozen
from .saved import Answer, Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

SLAB = 1 << 21
"""Most numbers of an input that are unpacked at once in backward."""


class Window(NamedTuple):
    """The stride, padding, dilation and groups of a convolution.

    Attributes:
        function: `F.conv1d` and so on, or `F.conv_transpose1d` and so on.
        stride: Step, along each axis.
        padding: Zeros on both sides of each axis.
        dilation: Step in the input from one tap to the next.
        groups: Parts of the channels that do not meet.
        output_padding: Of a transposed one: what is added on the far sides.
        behind: Zeros on the far side of each axis besides, where `padding="same"` is uneven.
    """

    function: Callable[..., Tensor]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int = 1
    output_padding: list[int] | None = None
    behind: tuple[int, ...] = ()

    def over(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve."""
        if self.output_padding is not None:
            given = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
            return self.function(x, weight, bias, *given)
        x = self.padded(x)
        return self.function(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def padded(self, x: Tensor) -> Tensor:
        """Add the zeros behind, as torch does."""
        far = [n for behind in reversed(self.behind) for n in (0, behind)]
        return F.pad(x, far) if any(far) else x

    def gradients(self, needs: Needs, dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Any, Any]:
        """Compute dx and dW where they are needed."""
        transposed, apart = self.output_padding is not None, self.output_padding or [0]
        given = (self.stride, self.padding, self.dilation, transposed, apart, self.groups)
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dy, x, weight, None, *given, [needs[0], needs[1], False]
        )
        return dx, dw


def _forward(
    needs: Needs,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    window: Window,
    follows: bool = False,
    **_: object,
) -> Forward:
    y = window.over(x, weight.to(x.dtype), bias)
    wanted = needs[0] or needs[1]
    residues = [Residue(x)] * needs[1] + [Residue(weight)] * (wanted and follows)
    return Forward(y, tuple(residues), (weight if wanted and not follows else None,))


def _backward(
    needs: Needs,
    residues: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    shape: torch.Size,
    window: Window,
    follows: bool = False,
    fan: Fan | None = None,
) -> Tensors:
    db = dy.sum((0, *range(2, dy.ndim))) if needs[2] else None
    if not (needs[0] or needs[1]):
        return None, None, db
    weight = residues[-1] if follows else extras[0]
    assert weight is not None
    # Only its shape is looked at where no weight trains.
    x = residues[0] if needs[1] else dy.new_empty(1).expand(shape)
    x, weight = window.padded(x.to(dy.dtype)), weight.to(dy.dtype)
    dx, dw = window.gradients(needs, dy, x, weight)
    if needs[0] and any(window.behind):
        dx = dx[tuple(slice(n) for n in shape)]
    return hand(fan, dx), dw, db


def _packed(
    needs: Needs,
    codec: Codec,
    packed: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    shape: torch.Size,
    window: Window,
    follows: bool = False,
    fan: Fan | None = None,
) -> Any:
    """Compute the gradients of some channels of an image at a time: x is never unpacked whole."""
    plane, axis = shape[2:].numel(), 1 if window.output_padding is None else 0
    step = max(1, SLAB // plane)
    small = len(shape) == 3 or shape.numel() <= SLAB
    whole = small or follows or window.groups > 1 or any(window.behind) or not needs[1]
    if whole or not isinstance(codec, Affine) or codec.part(packed, 0, plane) is None:
        return NotImplemented
    (weight,) = extras
    assert weight is not None
    dx = begin(fan, dy, shape) if needs[0] else None
    dw = torch.zeros_like(weight, dtype=dy.dtype)
    for image, first in itertools.product(range(shape[0]), range(0, shape[1], step)):
        count = min(step, shape[1] - first)
        start = (image * shape[1] + first) * plane
        codes = codec.part(packed, start, start + count * plane)
        assert codes is not None
        taps = weight.narrow(axis, first, count).to(dy.dtype)
        like = torch.Size((1, count, *shape[2:]))
        parts = window.gradients(needs, dy[image, None], codec.unpack(codes, like, dy.dtype), taps)
        dw.narrow(axis, first, count).add_(parts[1])
        if dx is not None:
            dx[image, None, first : first + count] += parts[0]
        del parts
    db = dy.sum((0, *range(2, dy.ndim))) if needs[2] else None
    return hand(fan, dx), dw, db


CONV = Op(_forward, _backward, packed=_packed)
"""y = W * x + b in one to three dimensions, or its transpose. Residue: x if W wants a gradient.

Options: `shape` of x; `window`; `follows`: whether W follows from a parameter, as a standardised
weight does, and is a residue as well; `fan`, where dx is added up. A weight in fewer bytes than x
is widened for each product. A large input (`SLAB`) is unpacked some channels of an image at a time.

Saves:
    What the codec keeps of the numbers in x; nothing if the weight is frozen, where torch keeps x.
    Nothing of a weight that follows from a parameter, where torch keeps it.
"""


def _answer(window: Callable[[Call], Window]) -> Answer:
    def answered(codecs: Codecs, call: Call) -> Result:
        x, weight = call.argument(0, "input"), call.argument(1, "weight")
        bias = call.argument(2, "bias")
        wanted = any(t is not None and t.requires_grad for t in (x, weight, bias))
        if "conv" not in codecs or x.ndim != weight.ndim or not wanted:
            return NotImplemented
        given = but_frozen(autocast((x, weight, bias)), weight)
        assert given[1] is not None
        follows = not torch.compiler.is_compiling() and derived(given[1]) is not None
        kept = (codecs["conv"],) * weight.requires_grad
        each = (*kept, Exact()) if follows else kept
        x, fan = gathered(given[0])  # type: ignore[arg-type]
        options = {"shape": x.shape, "window": window(call), "follows": follows, "fan": fan}
        return saved(CONV, each, x, *given[1:], **options)

    return answered


def _window(call: Call) -> Window:
    taps = call.argument(1, "weight").shape[2:]
    axes = len(taps)
    stride, dilation = (
        along(call.argument(i, name, 1), axes) for i, name in ((3, "stride"), (5, "dilation"))
    )
    padding, behind = call.argument(4, "padding", 0), ()
    if padding == "same":
        whole = [d * (n - 1) for d, n in zip(dilation, taps, strict=True)]
        padding, behind = [n // 2 for n in whole], tuple(n % 2 for n in whole)
    padding = along(0 if padding == "valid" else padding, axes)
    groups = call.argument(6, "groups", 1)
    return Window(call.function, stride, padding, dilation, groups, behind=behind)


def _transposed(call: Call) -> Window:
    axes = call.argument(1, "weight").ndim - 2
    stride, padding, apart, dilation = (
        along(call.argument(i, name, default), axes)
        for i, name, default in (
            (3, "stride", 1),
            (4, "padding", 0),
            (5, "output_padding", 0),
            (7, "dilation", 1),
        )
    )
    groups = call.argument(6, "groups", 1)
    return Window(call.function, stride, padding, dilation, groups, apart)


def along(value: int | Sequence[int], axes: int = 2) -> list[int]:
    """Read a size that may be one number for all axes.

    Args:
        value: One integer, or one or several in a sequence.
        axes: How many axes there are.

    Returns:
        One for each.
    """
    return [value] * axes if isinstance(value, int) else list(value) * (axes // len(value))


TIGHT = {"conv": Affine(8, 64, stats=torch.bfloat16)}
_DIRECT, _TURNED = _answer(_window), _answer(_transposed)
CALLS: Calls = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _DIRECT),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _TURNED),
}


def _case(x: Shape, weight: Shape, channels: int, window: Window, **given: object) -> Case:
    return Case(
        CONV,
        (x, weight, (channels,)),
        lambda x, w, b: window.function(x, w, b, **given),
        lambda n: [x] * n[1],
        {"shape": torch.Size(x), "window": window},
        as_is=lambda n: [1] if n[0] or n[1] else [],
        linear=True,
    )


def _quiet(*args: Any, **given: Any) -> Tensor:
    with warnings.catch_warnings():  # torch's, of an uneven padding
        warnings.simplefilter("ignore")
        return F.conv2d(*args, **given)


CASES = {
    "conv": _case(
        (2, 4, 6, 6),
        (6, 2, 3, 3),
        6,
        Window(F.conv2d, [2, 2], [1, 1], [1, 1], 2),
        stride=2,
        padding=1,
        groups=2,
    ),
    "conv_same": _case(
        (2, 2, 5, 4),
        (3, 2, 4, 3),
        3,
        Window(_quiet, [1, 1], [1, 2], [1, 2], behind=(1, 0)),
        padding="same",
        dilation=(1, 2),
    ),
    "conv_valid": _case(
        (2, 2, 7),
        (3, 2, 3),
        3,
        Window(F.conv1d, [2], [0], [1]),
        stride=2,
        padding="valid",
    ),
    "conv_volume": _case(
        (2, 2, 3, 4, 3),
        (2, 2, 2, 3, 1),
        2,
        Window(F.conv3d, [1, 2, 1], [0, 1, 0], [1, 1, 1]),
        stride=(1, 2, 1),
        padding=(0, 1, 0),
    ),
    "conv_transposed": _case(
        (2, 4, 3, 4),
        (4, 1, 3, 2),
        2,
        Window(F.conv_transpose2d, [2, 3], [1, 0], [1, 2], 2, [1, 0]),
        stride=(2, 3),
        padding=(1, 0),
        output_padding=(1, 0),
        groups=2,
        dilation=(1, 2),
    ),
}

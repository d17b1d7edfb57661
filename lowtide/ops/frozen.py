"""Linear maps and convolutions whose weight is frozen and kept in few bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..codecs.base import Codec, Residue
from ..core.alike import alike
from ..kernels.slices import SLICE
from .conv import Window
from .linear import autocast
from .saved import Forward, Needs, Op, Tensors, saved

GROUP = 64
"""Numbers that a codec may give a scale in common: a slab holds whole groups."""
Layout = tuple[tuple[int, torch.dtype], ...]


@dataclass(frozen=True)
class Slabs:
    """How a weight `(D, ...)` lies in bytes: cut into slabs of rows, each packed by itself.

    A slab of about 2^18 numbers is widened at a time, so that a layer is never whole in floats.
    What a codec keeps of a slab lies side by side: no cast of a model's dtype reaches it.

    Attributes:
        codec: How a slab is kept.
        shape: Shape of the weight.
        dtype: Dtype it had.
        rows: Rows of a slab; the last has what is left.
        parts: Length and dtype of each tensor that the codec keeps, for a full slab and the last.
    """

    codec: Codec
    shape: torch.Size
    dtype: torch.dtype
    rows: int
    parts: tuple[Layout, Layout]

    @classmethod
    def pack(cls, codec: Codec, weight: Tensor) -> tuple[Slabs, Tensor]:
        """Pack a weight.

        Args:
            codec: How to keep it.
            weight: `(D, ...)`, also on the meta device.

        Returns:
            How it lies, and the bytes.
        """
        flat = weight.detach().flatten(1)
        rows = _rows(*flat.shape)
        packed = [codec.pack(Residue(slab)) for slab in flat.split(rows)]
        layouts = [tuple((t.numel(), t.dtype) for t in packed[i]) for i in (0, -1)]
        slabs = cls(codec, weight.shape, weight.dtype, rows, (layouts[0], layouts[1]))
        return slabs, torch.cat([_joined(p) for p in packed])

    def each(self, packed: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Widen slab after slab.

        Args:
            packed: The bytes.
            dtype: Dtype to widen to.

        Yields:
            Which rows, and these `(rows, ...)`.
        """
        size, stride = self.shape[0], _length(self.parts[0])
        starts = enumerate(range(0, size, self.rows))
        for i, first in alike(starts, lambda at: min(size - at[1], self.rows)):
            last = min(size, first + self.rows)
            layout = self.parts[last == size]
            kept = _split(packed[i * stride : i * stride + _length(layout)], layout)
            shape = torch.Size((last - first, *self.shape[1:]))
            flat = torch.Size((last - first, shape.numel() // (last - first)))
            yield slice(first, last), self.codec.unpack(kept, flat, dtype).view(shape)

    def whole(self, packed: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Widen all of it.

        Args:
            packed: The bytes.
            dtype: Dtype to widen to; by default the one it had.

        Returns:
            The rounded weight.
        """
        weight = torch.empty(self.shape, dtype=dtype or self.dtype, device=packed.device)
        for rows, slab in self.each(packed, weight.dtype):
            weight[rows] = slab
        return weight


def _rows(count: int, width: int) -> int:
    """Rows of a slab: whole groups of numbers, and slabs of about one size."""
    unit = GROUP // math.gcd(GROUP, width)
    slabs = max(1, count * width // SLICE)
    return -(-count // (slabs * unit)) * unit


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    """Lay tensors side by side as bytes; those of wide numbers come first and stay aligned."""
    order = sorted(parts, key=lambda t: -t.itemsize)
    joined = torch.cat([t.reshape(-1).view(torch.uint8) for t in order])
    return F.pad(joined, (0, -len(joined) % 8))


def _split(packed: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    """Undo `_joined`."""
    found: dict[int, Tensor] = {}
    start = 0
    for i in sorted(range(len(layout)), key=lambda i: -layout[i][1].itemsize):
        count, dtype = layout[i]
        end = start + count * dtype.itemsize
        found[i], start = packed[start:end].view(dtype), end
    return tuple(found[i] for i in range(len(layout)))


def _length(layout: Layout) -> int:
    return -(-sum(count * dtype.itemsize for count, dtype in layout) // 8) * 8


def _part(bias: Tensor | None, rows: slice) -> Tensor | None:
    return None if bias is None else bias[rows]


def _assembled(pieces: Iterator[tuple[slice, Tensor]], size: int, axis: int) -> Tensor:
    """Put outputs side by side as they come."""
    rows, piece = next(pieces)
    if rows.stop == size:
        return piece
    shape = list(piece.shape)
    shape[axis] = size
    whole = torch.empty(shape, dtype=piece.dtype, device=piece.device, memory_format=_format(piece))
    whole.narrow(axis, 0, rows.stop).copy_(piece)
    del piece  # before the next one is made
    for rows, piece in pieces:
        whole.narrow(axis, rows.start, rows.stop - rows.start).copy_(piece)
        del piece
    return whole


def _format(x: Tensor) -> torch.memory_format:
    maps = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if maps and not x.is_contiguous() else torch.contiguous_format


def _forward(
    needs: Needs, x: Tensor, packed: Tensor, bias: Tensor | None, *, slabs: Slabs
) -> Forward:
    each = slabs.each(packed, x.dtype)
    pieces = ((rows, F.linear(x, slab, _part(bias, rows))) for rows, slab in each)
    y = _assembled(pieces, slabs.shape[0], -1)
    return Forward(y, (), (packed if needs[0] else None,))


def _backward(
    needs: Needs, residues: tuple[Tensor, ...], extras: Tensors, dy: Tensor, *, slabs: Slabs
) -> Tensors:
    (packed,) = extras
    dx = None
    for rows, slab in slabs.each(packed, dy.dtype) if packed is not None else ():
        part = dy[..., rows].reshape(-1, len(slab))
        dx = torch.mm(part, slab) if dx is None else dx.addmm_(part, slab)
    dx = None if dx is None else dx.view(*dy.shape[:-1], -1)
    return dx, None, dy.flatten(0, -2).sum(0) if needs[2] else None


FROZEN_LINEAR = Op(_forward, _backward)
"""y = x W^T + b with a frozen W kept as `slabs` says; dx = dy W, db = sum(dy).

Saves:
    The bytes of W, which are no copy. A slab of it is widened at a time.
"""


def _convolve(
    needs: Needs,
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    *,
    slabs: Slabs,
    window: Window,
    shape: torch.Size,
) -> Forward:
    each = _slabs(slabs, packed, x.dtype, window)
    pieces = ((rows, window.over(x, slab, _part(bias, rows))) for rows, slab in each)
    return Forward(_assembled(pieces, slabs.shape[0], 1), (), (packed if needs[0] else None,))


def _convolve_back(
    needs: Needs,
    residues: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    slabs: Slabs,
    window: Window,
    shape: torch.Size,
) -> Tensors:
    (packed,) = extras
    like = dy.new_empty(1).expand(shape)  # only its shape is looked at
    given = (window.stride, window.padding, window.dilation, False, [0], window.groups)
    dx = None
    for rows, slab in _slabs(slabs, packed, dy.dtype, window) if packed is not None else ():
        part, _, _ = torch.ops.aten.convolution_backward(
            dy[:, rows], like, slab, None, *given, [True, False, False]
        )
        dx = part if dx is None else dx.add_(part)
    return dx, None, dy.sum((0, *range(2, dy.ndim))) if needs[2] else None


def _slabs(
    slabs: Slabs, packed: Tensor, dtype: torch.dtype, window: Window
) -> Iterator[tuple[slice, Tensor]]:
    """Widen slab after slab, but a grouped kernel, which is small, at once."""
    if window.groups == 1:
        yield from slabs.each(packed, dtype)
    else:
        yield slice(0, slabs.shape[0]), slabs.whole(packed, dtype)


FROZEN_CONV = Op(_convolve, _convolve_back)
"""y = W * x + b with a frozen W kept as `slabs` says. Options: as those of `CONV`.

Saves:
    The bytes of W, which are no copy; not x, which torch would keep.
"""


def frozen_linear(x: Tensor, packed: Tensor, bias: Tensor | None, slabs: Slabs) -> Tensor:
    """Do what F.linear does, with a frozen weight in few bits.

    Args:
        x: (..., C).
        packed: The bytes of the weight (D, C).
        bias: (D,).
        slabs: How the weight lies in its bytes.

    Returns:
        (..., D), in the dtype of x, or autocast's.
    """
    if not torch.compiler.is_compiling() and has_torch_function((x,)):  # a mode follows the call
        given = (x, packed, bias, slabs)
        return cast(Tensor, handle_torch_function(frozen_linear, (x,), *given))
    x, bias = cast(Any, autocast((x, bias)))
    return saved(FROZEN_LINEAR, (), x, packed, bias, slabs=slabs)


def frozen_conv(
    x: Tensor, packed: Tensor, bias: Tensor | None, slabs: Slabs, window: Window
) -> Tensor:
    """Do what F.conv2d does, with a frozen weight in few bits.

    Args:
        x: (B, C, H, W).
        packed: The bytes of the weight (D, C / groups, h, w).
        bias: (D,).
        slabs: How the weight lies in its bytes.
        window: How it goes over x.

    Returns:
        (B, D, H', W'), in the dtype of x, or autocast's.
    """
    (x, bias) = cast(Any, autocast((x, bias)))
    return saved(FROZEN_CONV, (), x, packed, bias, slabs=slabs, window=window, shape=x.shape)


PRODUCTS = (frozen_linear,)

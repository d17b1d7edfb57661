"""Layers that read a few rows for each row: recomputed in backward, a band of rows at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Reader, Residue
from .fan import Fan, begin, gathered, hand
from .once import once
from .saved import keep
from .spare import spared, unpack

BAND = 1 << 20
"""Numbers of the widest map in a band, about: what backward makes exists for one band at a time."""
ALIGNED = 8
"""Rows that are unpacked together, so that groups of codes begin and end with them."""


class Rows(NamedTuple):
    """What layers read along the second axis from the end.

    Attributes:
        times: Rows of the result for each row of the input.
        halo: Rows of the input on either side that a row of the result may depend on besides.
        widest: Numbers of the largest map inside, for each column of one row of the input.
    """

    times: int
    halo: int
    widest: int


class Read(NamedTuple):
    """Layers as a function of some rows of some images.

    Attributes:
        run: From `(N, C, h, W)` to `(N, K, times h, ...)`; at its own edges a row is as if the map
            ended there.
        rows: What it reads.
        images: Most images that it is run on at once in forward.
    """

    run: Callable[[Tensor], Tensor]
    rows: Rows
    images: int


def banded(read: Read, codec: Codec, x: Tensor, *weights: Tensor) -> Tensor:
    """Run layers; keep x alone, and run them once more in backward, a band of rows at a time.

    The forward is that of the layers, on all rows. A band is computed with `Rows.halo` rows more on
    either side, of whose results nothing is used, so that every row comes out as in the whole.

    Args:
        read: The layers.
        codec: How x is kept.
        x: `(N, C, H, W)`.
        *weights: All that the layers read besides.

    Returns:
        What they give.

    Saves:
        What the codec keeps of x, nothing of what is inside. In backward a band of everything
        exists, and the gradients of x and of the weights are added up in place.
    """
    alias, fan = gathered(x)
    result: Tensor = _Banded.apply(read, codec, fan, alias, *weights)
    return result


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, read: Read, codec: Codec, fan: Fan | None, x: Tensor, *weights: Tensor
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            reader, packed = keep(codec, Residue(x))
        ctx.save_for_backward(*packed, *weights)
        ctx.read, ctx.fan, ctx.kept = read, fan, (reader, len(packed), x.shape, x.dtype)
        ctx.needs, ctx.cast = x.requires_grad, autocast_of(x)
        with torch.autocast(*ctx.cast):
            parts = (read.run(part) for part in x.split(read.images))
            first = next(parts)
            if len(first) == len(x):
                return first
            y = first.new_empty((len(x), *first.shape[1:]))
            for i, part in enumerate(itertools.chain((first,), parts)):
                y[i * read.images :][: len(part)] = part
        return y

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        reader, count, shape, dtype = ctx.kept
        packed, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        wanted = [w for w in weights if w.requires_grad]
        sums = [torch.zeros_like(w) for w in wanted]
        dx = begin(ctx.fan, dy.new_empty(0, dtype=dtype), shape) if ctx.needs else None
        source = _Source(reader, packed, shape, dtype)
        times, halo, _ = ctx.read.rows
        for images, rows in _bands(shape, ctx.read.rows):
            near = slice(max(0, rows.start - halo), min(shape[2], rows.stop + halo))
            x = source.read(images, near).requires_grad_(ctx.needs)
            skipped, length = times * (rows.start - near.start), times * (rows.stop - rows.start)
            with torch.enable_grad(), torch.autocast(*ctx.cast):
                y = ctx.read.run(x).narrow(2, skipped, length)
            given = dy[images, :, times * rows.start : times * rows.stop]
            found = torch.autograd.grad(y, [x] * ctx.needs + wanted, given.to(y.dtype))
            del x, y
            if dx is not None:
                dx[images, :, near] += found[0]
            for total, part in zip(sums, found[ctx.needs :], strict=True):
                total += part
        each = iter(sums)
        of_weights = (next(each) if w.requires_grad else None for w in weights)
        return None, None, None, hand(ctx.fan, dx), *of_weights


def autocast_of(x: Tensor) -> tuple[str, torch.dtype, bool, bool]:
    """Note the autocast that layers run under, to enter it again in backward.

    Args:
        x: Their input.

    Returns:
        Arguments of `torch.autocast`.
    """
    # Without a cache: torch 2.8 would find there in backward what forward cast without a graph.
    kind = x.device.type
    return kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), False


def _bands(shape: torch.Size, rows: Rows) -> Iterator[tuple[slice, slice]]:
    """Cut a batch into images, and large ones into rows."""
    images, _, height, width = shape
    most = max(1, BAND // (rows.widest * width))
    together = max(1, most // height)
    for i in range(0, images, together):
        for first in range(0, height, most):
            yield slice(i, min(i + together, images)), slice(first, min(first + most, height))


class _Source:
    """Rows of a kept tensor; where its codec cannot read some alone, it is unpacked whole."""

    def __init__(
        self, reader: Reader, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype
    ) -> None:
        self._reader, self._packed, self._shape, self._dtype = reader, packed, shape, dtype
        self._whole: Tensor | None = None

    def read(self, images: slice, rows: slice) -> Tensor:
        """Unpack some rows of some images, as a tensor that nobody else has."""
        if self._whole is None and (found := self._part(images, rows)) is not None:
            return found
        if self._whole is None:
            self._whole = unpack(self._reader, self._packed, self._shape, self._dtype).detach()
        return self._whole[images, :, rows].clone()

    def _part(self, images: slice, rows: slice) -> Tensor | None:
        codec = self._reader
        if not isinstance(codec, Affine) or spared(self._packed):
            return None
        _, channels, height, width = self._shape
        plane, count = height * width, images.stop - images.start
        start, stop = (n * channels * plane for n in (images.start, images.stop))
        if (codes := codec.part(self._packed, start, stop)) is None:
            return None
        first = rows.start // ALIGNED * ALIGNED
        last = min(-(-rows.stop // ALIGNED) * ALIGNED, height)
        if (codes := codec.part(codes, first * width, last * width, of=plane)) is None:
            return None
        like = torch.Size((count, channels, last - first, width))
        x = codec.unpack(codes, like, self._dtype)
        return x.narrow(2, rows.start - first, rows.stop - rows.start).detach()

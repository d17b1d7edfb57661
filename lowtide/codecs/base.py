"""What a codec is: a way to keep a tensor in fewer bytes until the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

SLICE = 1 << 18
"""Numbers that are packed at a time, so that what packing needs besides its result stays small."""


def _same(rows: Tensor) -> Tensor:
    return rows


class Residue(NamedTuple):
    """What a backward needs: `of(source)`, a function of rows, so it can be made in slices.

    Attributes:
        source: A tensor that is alive anyway.
        of: Maps a slice of `source` along its leading dimensions to the same slice of the residue;
            shapes stay. Identity if not given.
    """

    source: Tensor
    of: Callable[[Tensor], Tensor] = _same

    @property
    def whole(self) -> bool:
        """Whether the residue is the source itself."""
        return self.of is _same

    def slices(self, unit: int) -> Iterator[Tensor]:
        """Make the residue piece by piece, flattened.

        Args:
            unit: Every piece but the last holds a multiple of this many numbers.

        Yields:
            Pieces (n,), together the flattened residue, in float32 or float64.
        """
        x = self.source.detach()
        if x.numel() == 0:
            return
        if x.ndim < 2:
            x = x.reshape(1, -1)
        elif x.is_contiguous():
            x = x.flatten(0, -2)
        row = x[0].numel()
        step = unit // math.gcd(unit, row)
        # A compiler fuses the chain by itself, and unrolled slices would only lengthen its graph.
        rows = len(x) if torch.compiler.is_compiling() else step * max(1, SLICE // (row * step))
        for start in range(0, len(x), rows):
            piece = self.of(x[start : start + rows]).reshape(-1)
            yield piece if piece.dtype == torch.float64 else piece.float()


class Reader(Protocol):
    """Reads a tensor off what is kept."""

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Turn the kept tensors back into a residue of this shape and dtype."""
        ...


class Codec(Reader, Protocol):
    """A way to keep a tensor. Frozen values: two codecs with equal fields are the same codec."""

    def pack(self, residue: Residue) -> tuple[Tensor, ...]:
        """Turn the residue into the tensors that are kept."""
        ...

    def nbytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Say how many bytes `pack` keeps for a residue of this shape and dtype."""
        ...

    def bound(self, residue: Tensor) -> Tensor:
        """Bound |unpack(pack(residue)) - residue|, element by element, in the residue's shape."""
        ...

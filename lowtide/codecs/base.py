"""What a codec is: a way to keep a tensor in fewer bytes until the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..kernels.slices import slices


def _same(rows: Tensor) -> Tensor:
    return rows


class Residue(NamedTuple):
    """What a backward needs: `of(source)`, a function of rows, so it can be made in slices.

    Attributes:
        source: A tensor that is alive anyway.
        of: Maps a slice of `source` along its leading dimensions to the same slice of the residue;
            shapes stay. Identity if not given.
        beside: What else `of` takes: tensors (..., 1) of numbers per row, sliced alike.
        pointwise: Whether `of` maps each number by itself.
    """

    source: Tensor
    of: Callable[..., Tensor] = _same
    beside: tuple[Tensor, ...] = ()
    pointwise: bool = False

    def is_whole(self) -> bool:
        """Say whether the residue is the source itself.

        Returns:
            Whether nothing is made of it.
        """
        return self.of is _same

    def slices(self, unit: int) -> Iterator[Tensor]:
        """Make the residue chunk by chunk, flattened.

        Args:
            unit: Every chunk but the last holds a multiple of this many numbers.

        Returns:
            Pieces (n,), together the flattened residue, in float32 or float64.
        """
        return slices((self.source, *self.beside), unit, self.of)


class Reader(Protocol):
    """Reads a tensor off what is kept."""

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Turn what is kept back into a residue.

        Args:
            packed: What `pack` gave.
            shape: Shape of the residue.
            dtype: Dtype of the residue.

        Returns:
            The residue, within `bound`.
        """
        ...


class Codec(Reader, Protocol):
    """A way to keep a tensor. Frozen values: two codecs with equal fields are the same codec."""

    def pack(self, residue: Residue) -> tuple[Tensor, ...]:
        """Turn a residue into the tensors that are kept.

        Args:
            residue: What to keep.

        Returns:
            What `unpack` reads.
        """
        ...

    def nbytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Count the bytes that `pack` keeps.

        Args:
            shape: Shape of the residue.
            dtype: Dtype of the residue.

        Returns:
            All of them.
        """
        ...

    def bound(self, residue: Tensor) -> Tensor:
        """Bound |unpack(pack(residue)) - residue|, element by element.

        Args:
            residue: A residue.

        Returns:
            The bound of each number, in the residue's shape.
        """
        ...

"""Keep one bit: whether a number is positive."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.bits import packed_bytes
from .base import Residue
from .threshold_codes import pack, scale, unpack


@dataclass(frozen=True)
class Sign:
    """Keep r > 0 as one bit; exact for residues that are 0 or 1 (ReLU, ReLU6, a dropout mask).

    The 1-bit mask of S2A for ReLU (Jin et al. 2025, section 3.2).

    Saves:
        ceil(n / 8) bytes.
    """

    @property
    def cuts(self) -> tuple[float, ...]:
        """Zero: a bit is the number of cuts below a value."""
        return (0.0,)

    def pack(self, residue: Residue) -> tuple[Tensor, ...]:
        """Keep the bits, one byte for eight numbers."""
        return pack(residue, self.cuts)

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Turn the bits into zeros and ones."""
        return unpack(packed, (0.0, 1.0), shape, dtype)

    def scale(self, packed: tuple[Tensor, ...], dy: Tensor) -> Tensor:
        """Multiply a gradient with the zeros and ones.

        Args:
            packed: What `pack` gave.
            dy: A gradient in the shape of the residue.

        Returns:
            It where the residue was positive, else zero.
        """
        return scale(packed, (0.0, 1.0), dy)

    def nbytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Count one byte for eight numbers."""
        return packed_bytes(shape.numel(), 1)

    def bound(self, residue: Tensor) -> Tensor:
        """Give the distance from 0 or 1."""
        return (residue - (residue > 0).to(residue.dtype)).abs()


CASES = {"sign": Sign()}

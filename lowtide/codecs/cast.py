"""Keep numbers in a dtype of fewer bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Residue


@dataclass(frozen=True)
class Cast:
    """Keep the residue rounded to another floating dtype.

        x' = dtype(x)

    Attributes:
        dtype: What to round to.

    Saves:
        n * itemsize bytes of that dtype.
    """

    dtype: torch.dtype = torch.bfloat16

    def pack(self, residue: Residue) -> tuple[Tensor, ...]:
        """Keep the rounded numbers, flattened."""
        whole = residue.of(residue.source.detach(), *residue.beside)
        return (whole.to(self.dtype, copy=True).reshape(-1),)

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Widen the rounded numbers."""
        return packed[0].view(shape).to(dtype)

    def nbytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Count all of them, in the dtype they are kept in."""
        return shape.numel() * self.dtype.itemsize

    def bound(self, residue: Tensor) -> Tensor:
        """Bound the error: half a unit in the last place."""
        kept = torch.finfo(self.dtype)
        return residue.abs() * (kept.eps / 2) + kept.smallest_normal * kept.eps


CASES = {"cast": Cast()}

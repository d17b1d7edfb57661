"""Keep everything as it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Residue


@dataclass(frozen=True)
class Exact:
    """Keep the residue itself; the laws of the ops are proved with it.

    Of a small part of a large tensor (the class token among all) it keeps a copy, so that the large
    one can go.

    Attributes:
        part: A view so many times smaller than its storage does not hold it.

    Saves:
        n * itemsize bytes, shared with the source where the residue is the source.
    """

    part: int = 8

    def pack(self, residue: Residue) -> tuple[Tensor, ...]:
        """Keep the whole residue."""
        kept = residue.of(residue.source.detach(), *residue.beside)
        if torch.compiler.is_compiling() or isinstance(residue.source, nn.Parameter):
            return (kept,)
        part = kept.untyped_storage().nbytes() > self.part * kept.numel() * kept.itemsize
        return (kept.clone() if part else kept,)

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Give it back."""
        return packed[0].view(shape).to(dtype)

    def nbytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Count all bytes of the residue."""
        return shape.numel() * dtype.itemsize

    def bound(self, residue: Tensor) -> Tensor:
        """Give zero everywhere."""
        return torch.zeros_like(residue)


CASES = {"exact": Exact()}

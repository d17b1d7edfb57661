"""Keep a few bits per number and a minimum and a step per group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels.affine import Rounding, affine_pack, affine_unpack, multiple_of_8, pack_chunks
from ..kernels.bits import packed_bytes
from ..kernels.slices import standardise
from .base import Residue


@dataclass(frozen=True)
class Affine:
    """Asymmetric uniform quantisation, group by group.

        q = round((x - lo) / step),  step = (hi - lo) / (2^bits - 1),  x' = q step + lo
        (equations 8 and 9 of S2A, Jin et al. 2025)

    A group is `group` consecutive numbers of the flattened residue (along the last axis where they
    divide it), one "row" (the last axis) or the whole "tensor". NaN and infinity make their whole
    group NaN: they are never hidden.

    Attributes:
        bits: Width of a code, 1 to 8.
        group: Numbers that share a minimum and a step.
        rounding: To the nearest code, down ("floor", where a maximum has the last code all the
            same), or at random so that the mean is right.
        stats: Dtype the minimum and the step are kept in; None keeps the residue's own. They are
            rounded outwards before the codes are made, so no number falls out of the range.

    Saves:
        n * bits / 8 bytes, and two statistics per group.
    """

    bits: int = 4
    group: int | Literal["row", "tensor"] = 64
    rounding: Rounding = "nearest"
    stats: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise InputError(f"affine codec: bits must be 1 to 8, not {self.bits}")
        if not (self.group in ("row", "tensor") or isinstance(self.group, int) and self.group > 0):
            raise InputError(
                f"affine codec: group is a count, 'row' or 'tensor', not {self.group!r}"
            )
        if self.rounding not in ("nearest", "floor", "stochastic"):
            raise InputError(
                f"affine codec: rounding is nearest, floor or stochastic, not {self.rounding!r}"
            )

    def pack(self, residue: Residue) -> tuple[Tensor, ...]:
        """Keep minima (groups,), steps (groups,) and codes as bytes."""
        source = residue.source.detach()
        size, dtype = self._size(source.shape), self._stats_dtype(source.dtype)
        if self._fused and (residue.is_whole() or residue.of is standardise):
            mean, rstd = residue.beside or (None, None)
            return affine_pack(source, mean, rstd, self.bits, size, dtype)
        whole = self._range(residue) if self.group == "tensor" else None
        chunks = residue.slices(8 if whole else multiple_of_8(size))
        return pack_chunks(chunks, source, self.bits, size, dtype, self.rounding, whole)

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Compute q step + lo."""
        low, step, codes = packed
        size = self._size(shape)
        return affine_unpack(low, step, codes, list(shape), self.bits, size, dtype)

    def part(
        self, packed: tuple[Tensor, ...], start: int, stop: int, of: int | None = None
    ) -> tuple[Tensor, ...] | None:
        """Take what is kept of some of the flattened numbers, which can be unpacked alone.

        Args:
            packed: What `pack` gave.
            start: The first of them.
            stop: The one behind the last.
            of: Numbers in a row, to take the same part of every row; by default there is one.

        Returns:
            Views of it, or of several rows copies; None where a group or a byte holds others as
            well, a group is no count, or codes do not divide a byte.
        """
        per_byte = 8 // self.bits
        if not isinstance(self.group, int) or 8 % self.bits:
            return None
        if any(n % self.group or n % per_byte for n in (start, stop, of or 0)):
            return None

        def cut(kept: Tensor, each: int) -> Tensor:
            part = slice(start // each, stop // each)
            return kept[part] if of is None else kept.view(-1, of // each)[:, part].flatten()

        low, step, codes = packed
        return cut(low, self.group), cut(step, self.group), cut(codes, per_byte)

    def nbytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Count codes and statistics."""
        groups = -(-shape.numel() // self._size(shape))
        return (
            packed_bytes(shape.numel(), self.bits) + 2 * groups * self._stats_dtype(dtype).itemsize
        )

    def bound(self, residue: Tensor) -> Tensor:
        """Bound the error: half a step, or a whole one if not rounded to the nearest."""
        low, step, *_ = self.pack(Residue(residue))
        share = 0.5 if self.rounding == "nearest" else 1.0
        low, step = low.to(residue.dtype), step.to(residue.dtype)
        # Besides: the rounding of the arithmetic itself, and steps too small to divide by.
        float_ = torch.finfo(residue.dtype)
        most = share * step + 8 * float_.eps * (low.abs() + step * 2**self.bits)
        most = most + torch.finfo(self._stats_dtype(residue.dtype)).tiny * 2**self.bits
        per_number = most.repeat_interleave(self._size(residue.shape))
        return per_number[: residue.numel()].view(residue.shape)

    @property
    def _fused(self) -> bool:
        return self.rounding == "nearest" and self.group != "tensor"

    def _size(self, shape: torch.Size) -> int:
        if self.group == "tensor":
            return max(1, shape.numel())
        if self.group == "row":
            return max(1, shape[-1] if shape else 1)
        return int(self.group)

    def _stats_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.stats or (torch.float64 if dtype == torch.float64 else torch.float32)

    def _range(self, residue: Residue) -> tuple[Tensor, Tensor] | None:
        ranges = [chunk.aminmax() for chunk in residue.slices(8)]
        if not ranges:
            return None
        low = torch.stack([r.min for r in ranges]).amin()
        return low.view(1, 1), torch.stack([r.max for r in ranges]).amax().view(1, 1)


CASES = {
    **{f"affine{bits}": Affine(bits, 16) for bits in (2, 3, 4, 6, 8)},
    "affine4_row": Affine(4, "row"),
    "affine4_tensor": Affine(4, "tensor"),
    "affine4_floor": Affine(4, 16, "floor"),
    "affine4_stochastic": Affine(4, 16, "stochastic"),
    "affine4_short": Affine(4, 64, stats=torch.bfloat16),
    "affine8_short": Affine(8, "row", stats=torch.bfloat16),
}

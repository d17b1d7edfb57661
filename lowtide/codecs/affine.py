"""Keep a few bits per number and a minimum and a step per group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError
from .base import Residue
from .bits import join, pack_bits, packed_bytes, unpack_bits

Rounding = Literal["nearest", "floor", "stochastic"]


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
        rounding: To the nearest code, down ("floor"), or at random so that the mean is right.
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
        """Keep codes, minima and steps.

        Args:
            residue: What to keep.

        Returns:
            Minima (groups,), steps (groups,), and the codes as bytes.
        """
        source = residue.source
        size = self._size(source.shape)
        dtype = self._stats_dtype(source.dtype)
        whole = self._range(residue) if self.group == "tensor" else None
        lows, steps, codes = [], [], []
        for piece in residue.slices(8 if whole else _multiple_of_8(size)):
            groups = piece.unsqueeze(0) if whole else _in_groups(piece, size)
            # aminmax along an axis does the same, ten times slower on a CPU.
            low, high = whole or (groups.amin(1, keepdim=True), groups.amax(1, keepdim=True))
            low, step = self._outward(low, high, dtype)
            codes.append(pack_bits(self._codes(groups, low, step, len(piece)), self.bits))
            lows.append(low.flatten())
            steps.append(step.flatten())
        if not codes:
            nothing = source.new_empty(0, dtype=dtype)
            return (nothing, nothing, *join([], residue, self.bits))
        if whole:
            lows, steps = lows[:1], steps[:1]
        return torch.cat(lows), torch.cat(steps), *join(codes, residue, self.bits)

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Compute q step + lo.

        Args:
            packed: What `pack` gave.
            shape: Shape of the residue.
            dtype: Dtype of the residue.

        Returns:
            The residue, within `bound`.
        """
        low, step, *codes = packed
        count, size = shape.numel(), self._size(shape)
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        x = _in_groups(unpack_bits(tuple(codes), self.bits, count).to(compute), size)
        x = x.mul_(step.to(compute).unsqueeze(1)).add_(low.to(compute).unsqueeze(1))
        return x.flatten()[:count].view(shape).to(dtype)

    def nbytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Count the bytes kept.

        Args:
            shape: Shape of the residue.
            dtype: Dtype of the residue.

        Returns:
            Codes and statistics.
        """
        groups = -(-shape.numel() // self._size(shape))
        return (
            packed_bytes(shape.numel(), self.bits) + 2 * groups * self._stats_dtype(dtype).itemsize
        )

    def bound(self, residue: Tensor) -> Tensor:
        """Bound the error: half a step, or a whole one if not rounded to the nearest.

        Args:
            residue: A residue.

        Returns:
            The bound of each number.
        """
        low, step, *_ = self.pack(Residue(residue))
        share = 0.5 if self.rounding == "nearest" else 1.0
        low, step = low.to(residue.dtype), step.to(residue.dtype)
        # Besides: the rounding of the arithmetic itself, and steps too small to divide by.
        float_ = torch.finfo(residue.dtype)
        most = share * step + 8 * float_.eps * (low.abs() + step * 2**self.bits)
        most = most + torch.finfo(self._stats_dtype(residue.dtype)).tiny * 2**self.bits
        per_number = most.repeat_interleave(self._size(residue.shape))
        return per_number[: residue.numel()].view(residue.shape)

    def _size(self, shape: torch.Size) -> int:
        if self.group == "tensor":
            return max(1, shape.numel())
        if self.group == "row":
            return max(1, shape[-1] if shape else 1)
        return int(self.group)

    def _stats_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.stats or (torch.float64 if dtype == torch.float64 else torch.float32)

    def _range(self, residue: Residue) -> tuple[Tensor, Tensor] | None:
        ranges = [piece.aminmax() for piece in residue.slices(8)]
        if not ranges:
            return None
        low = torch.stack([r.min for r in ranges]).amin()
        return low.view(1, 1), torch.stack([r.max for r in ranges]).amax().view(1, 1)

    def _outward(self, low: Tensor, high: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        top = 2**self.bits - 1
        if dtype.itemsize >= low.dtype.itemsize:
            return low, high / top - low / top
        slack = torch.finfo(dtype).eps
        low = (low - slack * low.abs()).to(dtype)
        wide = low.to(high.dtype)
        return low, ((high / top - wide / top) * (1 + slack)).to(dtype)

    def _codes(self, groups: Tensor, low: Tensor, step: Tensor, count: int) -> Tensor:
        step = step.to(groups.dtype)
        # A constant group has no step; its one value is the minimum, code 0.
        scale = torch.where(step < torch.finfo(step.dtype).tiny, 0, 1 / step)
        x = (groups - low.to(groups.dtype)).mul_(scale)
        if self.rounding == "nearest":
            x = x.round_()
        else:
            x = (x.add_(torch.rand_like(x)) if self.rounding == "stochastic" else x).floor_()
        return x.clamp_(0, 2**self.bits - 1).flatten()[:count].to(torch.uint8)


def _multiple_of_8(size: int) -> int:
    while size % 8:
        size *= 2
    return size


def _in_groups(flat: Tensor, size: int) -> Tensor:
    missing = -len(flat) % size
    if missing:
        flat = torch.cat((flat, flat[-1:].expand(missing)))
    return flat.view(-1, size)

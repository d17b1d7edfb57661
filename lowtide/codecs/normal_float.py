"""Keep four bits per number: the quantiles of a normal distribution, scaled block by block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels.affine import in_groups
from ..kernels.bits import packed_bytes
from ..kernels.normal_float import (
    LEVELS,
    normal_float_unpack,
    normal_float_unpack_plain,
    scales_plain,
    tree_on,
)
from ..kernels.slices import wide
from .base import Residue
from .threshold_codes import middles, pack

CUTS = middles(LEVELS)
FUSED = {"cuda"}
"""Devices with a kernel that unpacks at once; others look up codes and scale them one by one."""


@dataclass(frozen=True)
class NormalFloat:
    """NF4 with double quantisation. Dettmers et al. 2023, QLoRA, section 3.

        s = max |x| of a block,  code = argmin |x / s - level|,  x' = s' level
        s' = mean + c t,  c = max |s - mean| of a block of scales,
        t = the number of 8 bits nearest to (s - mean) / c

    The levels are those of NF4, the 16 quantiles of a normal distribution between -1 and 1. The
    8-bit numbers are those of dynamic tree quantisation (Dettmers et al. 2022, 8-bit optimizers):
    a sign, a power of ten from 1e-6 to 1, told by the zeros before the first one, and a linear
    fraction in the bits that are left. The mean is that of all scales of the residue.

    A block is `block` consecutive numbers of the flattened residue. NaN and infinity make all of it
    NaN: they are never hidden.

    Attributes:
        block: Numbers that share a scale.
        second: Scales that share their own.

    Saves:
        n / 2 bytes of codes, one for each scale, 4 for each block of scales and 4 for the mean:
        4.127 bits per number.
    """

    block: int = 64
    second: int = 256

    def __post_init__(self) -> None:
        if self.block < 8 or self.block % 8 or self.second < 1:
            raise InputError(
                "NF4 codec: block is a multiple of 8 and second at least 1, not"
                f" {self.block} and {self.second}"
            )

    def pack(self, residue: Residue) -> tuple[Tensor, ...]:
        """Keep codes and scales.

        Args:
            residue: What to keep.

        Returns:
            The mean of the scales (1,), the scales of the scales (blocks of scales,), the scales
            as 8-bit codes (blocks,), and the codes as bytes.
        """
        scales, codes = [], []
        for piece in residue.slices(self.block):
            groups = in_groups(piece, self.block)
            scale = groups.abs().amax(1, keepdim=True)
            share = torch.where(scale == 0, 0, groups / scale).flatten()[: len(piece)]
            scales.append(scale.flatten())
            codes.append(pack(Residue(share), CUTS)[0])
        like = residue.source.new_empty
        if not codes:
            floats, empty = like(0, dtype=torch.float32), like(0, dtype=torch.uint8)
            return like(1, dtype=torch.float32).zero_(), floats, empty, empty
        return *self._pack_scales(torch.cat(scales).float()), torch.cat(codes)

    def _pack_scales(self, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = scales.mean(0, keepdim=True)
        groups = in_groups(scales - mean, self.second)
        most = groups.abs().amax(1, keepdim=True)
        share = torch.where(most == 0, 0, groups / most).flatten()[: len(scales)]
        table = tree_on(share.device, torch.float32)
        code = torch.bucketize(share, (table[:-1] + table[1:]) / 2)
        return mean, most.flatten(), code.to(torch.uint8)

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Compute s' level."""
        mean, most, scales, codes = packed
        given = (mean, most, scales, codes, list(shape), self.block, self.second, dtype)
        if codes.device.type not in FUSED:
            return normal_float_unpack_plain(*given)
        x: Tensor = normal_float_unpack(*given)
        return x

    def scales(self, packed: tuple[Tensor, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Compute s'.

        Args:
            packed: What `pack` gave.
            dtype: Dtype of the scales.

        Returns:
            The scale of each block (blocks,).
        """
        mean, most, codes, _ = packed
        return scales_plain(mean, most, codes, self.second, dtype)

    def nbytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Count codes and scales."""
        blocks = -(-shape.numel() // self.block)
        return packed_bytes(shape.numel(), 4) + blocks + 4 * -(-blocks // self.second) + 4

    def bound(self, residue: Tensor) -> Tensor:
        """Bound the error: half the widest gap between levels, and the error of the scale."""
        if not residue.numel():
            return residue.abs()
        packed = self.pack(Residue(residue))
        exact = in_groups(wide(residue).flatten(), self.block).abs().amax(1)
        rounded = self.scales(packed, exact.dtype)
        gap = max(b - a for a, b in zip(LEVELS[:-1], LEVELS[1:], strict=True))
        # Besides: the rounding of the arithmetic itself.
        slack = 8 * torch.finfo(torch.float32).eps
        most = gap / 2 * exact + (rounded - exact).abs() + slack * exact.abs().amax()
        most = most + torch.finfo(torch.float32).tiny
        per_number = most.to(residue.dtype).repeat_interleave(self.block)
        return per_number[: residue.numel()].view(residue.shape)


CASES = {"nf4": NormalFloat(), "nf4_small": NormalFloat(16, 4)}

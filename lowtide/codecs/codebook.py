"""Keep which of a few fixed levels a number is nearest to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, UnknownName
from ..kernels.bits import packed_bytes
from .base import Residue
from .codebook_tables import LEVELS
from .threshold_codes import middles, pack, scale, unpack


@dataclass(frozen=True)
class Codebook:
    """A fixed table of levels: no minimum, no step, no reduction over the data.

        code = argmin |r - levels|,  r' = levels[code]

    Of a slope f'(x) the code is found by comparing x itself with the edges where the code changes:
    the slope is never computed.

    Made for the slope of an activation function, whose range is known beforehand: the levels are
    fitted once per function (Lloyd 1982, Max 1960) by `scripts/fit_codebooks.py`.

    Attributes:
        levels: Increasing values, two to sixteen of them.
        reach: Smallest and largest number the table is meant for.

    Saves:
        n * bits / 8 bytes, bits = log2(number of levels) rounded up.
    """

    levels: tuple[float, ...]
    reach: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 2 <= len(self.levels) <= 16 or list(self.levels) != sorted(set(self.levels)):
            raise InputError(f"codebook: levels must be 2 to 16 rising values, not {self.levels}")

    @classmethod
    def of(cls, function: str, bits: int = 4) -> Codebook:
        """Look up the levels fitted for the slope of an activation function.

        Args:
            function: Name of the function, e.g. `gelu`.
            bits: Width of a code, 1 to 4.

        Returns:
            The codec.

        Raises:
            InputError: No levels are stored for this width.
            UnknownName: No levels are stored for this function.
        """
        if function not in LEVELS:
            raise UnknownName("codebook", function, LEVELS)
        reach, tables = LEVELS[function]
        if bits not in tables:
            raise InputError(f"codebook codec: bits must be one of {sorted(tables)}, not {bits}")
        return cls(tables[bits], reach)

    @property
    def bits(self) -> int:
        """Width of a code."""
        return (len(self.levels) - 1).bit_length()

    @property
    def cuts(self) -> tuple[float, ...]:
        """The middles between levels: a code is the number of cuts below a value."""
        return middles(self.levels)

    def pack(self, residue: Residue) -> tuple[Tensor, ...]:
        """Keep the codes as bytes."""
        return pack(residue, self.cuts)

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Look the codes up: the nearest levels."""
        return unpack(packed, self.levels, shape, dtype)

    def scale(self, packed: tuple[Tensor, ...], dy: Tensor) -> Tensor:
        """Multiply a gradient with the levels, in one pass.

        Args:
            packed: What `pack` gave.
            dy: A gradient in the shape of the residue.

        Returns:
            dy r'.
        """
        return scale(packed, self.levels, dy)

    def nbytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Count the bytes of the codes."""
        return packed_bytes(shape.numel(), self.bits)

    def bound(self, residue: Tensor) -> Tensor:
        """Give half the widest gap, or the way from an outer level to the end of `reach`."""
        gaps = [(b - a) / 2 for a, b in zip(self.levels, self.levels[1:], strict=False)]
        ends = [self.levels[0] - self.reach[0], self.reach[1] - self.levels[-1]]
        # Besides: the rounding of the residue itself.
        return torch.full_like(residue, max(*gaps, *ends) + 1e-6)

"""Keep a slope as S2A does: a clipped input in few bits, and a sine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .affine import Affine, Rounding
from .base import Residue

GELU_RATE = 1.702
"""x sigmoid(1.702 x) is the GELU of the paper; SiLU has rate 1."""


@dataclass(frozen=True)
class Sine:
    """Keep the slope of x s(rate x), s the sigmoid, by the quantiser of S2A.

        x_q = quantise(clip(x, -c, c)),  slope = s(rate x_q) + 0.22 sin(1.5 x_q rate / 1.702),
        c = 2 (1.702 / rate)            (equation 12 of S2A, Jin et al. 2025)

    With rate 1.702 (GELU) it is s(1.702 x) + 0.22 sin(1.5 x) and c = 2; with rate 1 (SiLU) the same
    curve by the substitution x / 1.702: 0.22 sin(0.8813 x) and c = 3.404. Minimum and step are
    those of the whole tensor. It reads the input a slope is taken at, `residue.source`.

    Attributes:
        rate: Factor inside the sigmoid.
        bits: Width of a code.
        rounding: `nearest`, or `floor` as the paper's bracket is drawn.

    Saves:
        n * bits / 8 bytes, and two numbers.

    Differs:
        The paper prints a floor bracket and calls it rounding; to the nearest has half the error.
    """

    rate: float = GELU_RATE
    bits: int = 4
    rounding: Rounding = "nearest"

    def pack(self, residue: Residue) -> tuple[Tensor, ...]:
        """Keep with `Affine` the clipped input that the slope is taken at."""
        clip = self._clip
        return self._affine.pack(Residue(residue.source, lambda x: x.clamp(-clip, clip)))

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Compute the sine form of the slope."""
        x = self._affine.unpack(packed, shape, dtype)
        wave = torch.sin(x * (1.5 * self.rate / GELU_RATE)).mul_(0.22)
        return x.mul_(self.rate).sigmoid_().add_(wave)

    def nbytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Count the bytes of `Affine`."""
        return self._affine.nbytes(shape, dtype)

    def bound(self, residue: Tensor) -> Tensor:
        """Bound the error against the slope of x s(rate x).

        The sine misses that slope by at most 0.099 (just outside the clip); its own slope is at
        most 1.702 / 4 + 0.33 on the GELU's scale, which a code's error is multiplied with.

        Args:
            residue: A slope.

        Returns:
            One number, everywhere.
        """
        step = 2 * self._clip / (2**self.bits - 1)
        error = step * (0.5 if self.rounding == "nearest" else 1.0)
        steepest = (GELU_RATE / 4 + 0.33) * self.rate / GELU_RATE
        return torch.full_like(residue, 0.1 + steepest * error)

    @property
    def _clip(self) -> float:
        return 2 * GELU_RATE / self.rate

    @property
    def _affine(self) -> Affine:
        return Affine(self.bits, "tensor", self.rounding)

"""The last step from pixels to a model's input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalise:
    """From x, uint8 `(..., C, H, W)`, to y, float32 of the same shape.

        y = (x / 255 - mean) / std

    Attributes:
        mean: Of pixels in [0, 1], one per channel.
        std: Their standard deviation, likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Make floats of pixels.

        Args:
            pixels: x; it stays as it is.

        Returns:
            y.
        """
        of_both = torch.tensor([self.mean, self.std], dtype=torch.float32, device=pixels.device)
        mean, std = of_both[:, :, None, None]
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

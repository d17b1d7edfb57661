"""The last step from pixels to a model's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def normaliser(mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Make the last step from pixels to a model's input.

        y = (x / 255 - mean) / std

    Args:
        mean: Of pixels in [0, 1], one per channel.
        std: Their standard deviation, likewise.

    Returns:
        From x, uint8 `(..., C, H, W)`, to y, float32 of the same shape.
    """

    def normalise(pixels: Tensor) -> Tensor:
        numbers = torch.tensor([mean, std], dtype=torch.float32, device=pixels.device)
        of_mean, of_std = numbers[:, :, None, None]
        return pixels.to(torch.float32).div_(255).sub_(of_mean).div_(of_std)

    return normalise

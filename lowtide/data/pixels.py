"""Mean and standard deviation of pixels, those that checkpoints and published recipes use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import Tensor

from ..errors import UnknownName

Pixels = Literal["checkpoint", "imagenet", "inception"]
"""Whose mean and standard deviation of pixels: the checkpoint's own, or one of two that published
recipes use whatever the checkpoint wants. `inception` is 0.5 throughout."""

PIXELS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "inception": (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),
}


def statistics(pixels: Pixels, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Look up a published mean and standard deviation.

    Args:
        pixels: Whose; not the checkpoint's.
        channels: 3, or 1 for the means over the three.

    Returns:
        Both, a number per channel.

    Raises:
        UnknownName: There is no such choice.
    """
    if pixels not in PIXELS:
        raise UnknownName("normalize", pixels, get_args(Pixels))
    mean, std = PIXELS[pixels]
    return (mean, std) if channels > 1 else (mean_over_channels(mean), mean_over_channels(std))


def mean_over_channels(values: tuple[float, ...]) -> tuple[float, ...]:
    """Make one number of three, for a grey image: timm sums the filters of the first convolution.

    Args:
        values: A number per channel.

    Returns:
        Their mean.
    """
    return (math.fsum(values) / len(values),)


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

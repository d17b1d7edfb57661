"""What images are in numbers: channels, and the mean and deviation that recipes use."""

from __future__ import annotations

import math
from typing import Literal, get_args

from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import nn

from ..core.graft import find, root
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


def input_channels(model: nn.Module) -> int:
    """Say how many channels a model's images have.

    Args:
        model: A timm model.

    Returns:
        Those of its first convolution; 3 where nobody says which that is.
    """
    first = getattr(model, "pretrained_cfg", {}).get("first_conv")
    name = first if isinstance(first, str) else (first or ("",))[0]
    try:
        stem = root(find(model, name))
    except AttributeError:
        return 3
    return getattr(stem, "in_channels", 3) if name else 3

"""The augmentations of timm's training transform beyond cropping and mirroring."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
from PIL import Image
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)

from ..errors import InputError

POLICIES = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
"""timm's readers of a policy, by how its text begins; any other is a policy of AutoAugment."""
FILL = {"translate_const": 100}
"""What a policy is read with where no image is to be changed."""


@dataclass(frozen=True)
class Distortion:
    """Options of `timm.data.create_transform`, all off.

    Attributes:
        auto_augment: timm's text of a policy, such as `rand-m9-mstd0.5-inc1`.
        color_jitter: Most that brightness, contrast and saturation are changed by; timm leaves it
            out beside `auto_augment`.
        random_erasing: Probability of filling a rectangle with noise.
    """

    auto_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0

    @property
    def any(self) -> bool:
        """Whether anything is on."""
        return self != Distortion()

    def refuse_channels(self, channels: int) -> None:
        """Refuse a policy that this version of timm cannot apply to images of one channel.

        Args:
            channels: Of the images.

        Raises:
            InputError: It fails on a grey image.
        """
        text, drawn = self.auto_augment, (np.random.get_state(), random.getstate())
        if text is None or channels != 1:
            return
        try:
            _reader(text)(text, {**FILL, "img_mean": (128,)})(Image.new("L", (8, 8)))
        except ValueError as e:
            raise InputError(
                f"timm {timm.__version__} cannot apply auto_augment {text} to images of one"
                " channel: expected another policy, or a newer timm"
            ) from e
        finally:
            np.random.set_state(drawn[0])
            random.setstate(drawn[1])

    def options(self) -> dict[str, Any]:
        """Give the options under timm's names.

        Returns:
            Arguments of `create_transform`; what is erased is filled with noise pixel by pixel.
        """
        return {
            "auto_augment": self.auto_augment,
            "color_jitter": self.color_jitter,
            "re_prob": self.random_erasing,
            "re_mode": "pixel",
        }


def _reader(text: str) -> Callable[..., Callable[[Image.Image], Image.Image]]:
    return POLICIES.get(text.split("-")[0], auto_augment_transform)


def refuse_policy(text: str) -> None:
    """Refuse a policy that timm cannot read.

    Args:
        text: The policy.

    Raises:
        InputError: timm cannot read it.
    """
    _, *sections = text.split("-")
    try:
        idle = [s for s in sections if re.fullmatch("([^0-9t][^0-9]*)?", s)]
        assert not idle, f"timm passes over {idle[0]!r}, which has no number"
        _reader(text)(text, {**FILL, "img_mean": (128, 128, 128)})
    except (AssertionError, ValueError, KeyError, IndexError) as e:
        raise InputError(
            "auto_augment must be a policy that timm knows, such as rand-m9-mstd0.5-inc1,"
            f" augmix-m3-w3, original, v0 or 3a, not {text}" + (f" ({e})" if str(e) else "")
        ) from e

"""The augmentations of timm's training transform beyond cropping and mirroring."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)

from ..errors import InputError

POLICIES = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
"""timm's readers of a policy, by how its text begins; any other is a policy of AutoAugment."""


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


def refuse_policy(text: str) -> None:
    """Refuse a policy that timm cannot read.

    Args:
        text: The policy.

    Raises:
        InputError: timm cannot read it.
    """
    name, *sections = text.split("-")
    reader = POLICIES.get(name, auto_augment_transform)
    try:
        idle = [s for s in sections if re.fullmatch("([^0-9t][^0-9]*)?", s)]
        assert not idle, f"timm passes over {idle[0]!r}, which has no number"
        reader(text, {"translate_const": 100, "img_mean": (128, 128, 128)})
    except (AssertionError, ValueError, KeyError, IndexError) as e:
        raise InputError(
            "auto_augment must be a policy that timm knows, such as rand-m9-mstd0.5-inc1,"
            f" augmix-m3-w3, original, v0 or 3a, not {text}" + (f" ({e})" if str(e) else "")
        ) from e

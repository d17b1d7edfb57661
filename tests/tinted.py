"""A data set of noise with a tint, which any method learns in an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_tinted(root: Path, counts: Mapping[str, int]) -> Path:
    """Write three classes of 32-pixel images; counts are by split and per class."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for channel, name in enumerate(("red", "green", "blue")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 190, (32, 32, 3))
                pixels[..., channel] += 60
                Image.fromarray(pixels.astype("uint8")).save(root / split / name / f"{i}.png")
    return root

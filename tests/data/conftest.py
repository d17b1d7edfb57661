"""Tiny images on disk."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Paint = Callable[..., Path]


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """Write noise as an image below `tmp_path`; the same name gives the same pixels."""

    def paint(*names: str, size: tuple[int, int] = (20, 16)) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            random = np.random.default_rng(zlib.crc32(name.encode()))
            width, height = size
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return tmp_path

    return paint


@pytest.fixture
def cats_and_dogs(paint: Paint) -> Path:
    """Two class folders, 20 cats and 10 dogs."""
    paint(*(f"cat/{n}.png" for n in range(20)))
    return paint(*(f"dog/{n}.png" for n in range(10)))

"""Sizes of images by their headers, as they are once upright."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from ..images import formats

_ORIENTATION = 0x0112
_TURNED = range(5, 9)


def measure(paths: Sequence[Path]) -> dict[Path, tuple[int, int] | None]:
    """Read the size of each image, without decoding it.

    Args:
        paths: The files.

    Returns:
        Height and width after EXIF rotation; None where a file is missing or no image.
    """
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(_size, paths), strict=True))


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path, formats=formats()) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except Exception:  # decoders of broken bytes raise anything; why it is, `look` will say
        return None
    return (width, height) if turned else (height, width)

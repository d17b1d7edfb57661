"""Index masks: images whose values are classes, or numbers of objects, and never colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..images import MAX_PIXELS, UnreadableImage, formats

IGNORE = 255
"""The value of pixels that count for nothing."""

LOSSY = frozenset({".jpg", ".jpeg", ".jfif", ".jif"})


def read_mask(path: Path) -> np.ndarray:
    """Read an index mask; a palette is passed over, for it says colours and not classes.

    Args:
        path: A PNG or another format without loss, of one channel, or of equal ones.

    Returns:
        The values as they are stored, `(H, W)`, uint8 or wider.

    Raises:
        UnreadableImage: It is no such file, has colours, or is larger than any image that is read.
    """
    try:
        values = _stored(path)
    except Exception as error:  # decoders of broken bytes raise anything
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UnreadableImage(f"cannot read mask {path}: {reason.splitlines()[0]}") from error
    if values.ndim == 3:
        if (values[..., :3] != values[..., :1]).any():
            raise UnreadableImage(
                f"cannot read mask {path}: it has colours; expected class indices in one channel"
            )
        values = values[..., 0]
    if not np.issubdtype(values.dtype, np.integer):
        raise UnreadableImage(f"cannot read mask {path}: its values are no whole numbers")
    return values


def _stored(path: Path) -> np.ndarray:
    if path.suffix.lower() in LOSSY:
        raise ValueError("JPEG changes the values of pixels; a mask must be PNG")
    with Image.open(path, formats=formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"more than {MAX_PIXELS // 10**6} million pixels")
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        return np.asarray(image.getchannel("L") if image.mode == "LA" else image)


def translate(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Turn stored values into classes.

    Args:
        values: A mask as stored.
        classes: The class of each value from 0; a value beyond them is `IGNORE`, and was refused
            when the folder was read.

    Returns:
        Classes and `IGNORE`, int64 `(H, W)`.
    """
    known = np.full(max(int(values.max(initial=0)) + 1, len(classes)), IGNORE, dtype=np.int64)
    known[: len(classes)] = classes
    return known[values]

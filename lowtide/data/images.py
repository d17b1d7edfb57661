"""From a file to pixels: one decoder for the check at the door and for training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError

_MODES = {1: "L", 3: "RGB"}


class UnreadableImage(InputError):
    """An image that cannot be decoded (any more); the message names it."""

    def __init__(self, message: str) -> None:
        # A loader's worker hands its exception over as a whole traceback in one string, and
        # builds this class anew from it: the message is what follows the class's name, at the end.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


def decode(path: Path, channels: int = 3) -> Image.Image:
    """Decode one image as a model sees it: upright, opaque, 8 bits, grey or RGB.

    EXIF rotation is applied; transparency is laid over white (plain `convert("RGB")` shows
    whatever colour hides behind it); 16-bit grey keeps its upper byte (`convert` would clip).

    Args:
        path: The file.
        channels: 3 for RGB, 1 for grey.

    Returns:
        The decoded image, of mode `RGB` or `L`.

    Raises:
        UnreadableImage: The file is missing or is not an image PIL can decode whole.
    """
    try:
        with Image.open(path) as image:
            return _convert(image, _MODES[channels])
    except Exception as error:  # decoders of broken bytes raise anything, struct.error included
        raise UnreadableImage(f"cannot read image {path}: {_reason(error)}") from error


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in {"I", "F"}:
        raise ValueError(f"32-bit pixels (mode {image.mode}) have no range to map to 8 bits")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return str(error).partition("\n")[0] or type(error).__name__


def _fault(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            # A JPEG is then decoded at an eighth: every byte is still parsed, so truncation shows.
            image.draft(None, (32, 32))
            _convert(image, "RGB")
    except Exception as error:  # as in `decode`
        return _reason(error)
    return None


def faults(paths: Sequence[Path]) -> dict[Path, str]:
    """Decode every image once, in threads, and say which cannot be.

    A header that parses is no proof: a truncated JPEG passes `Image.verify`.

    Args:
        paths: The files, all of which exist.

    Returns:
        The reason for each image that cannot be decoded, in the order of `paths`.
    """
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        reasons = pool.map(_fault, paths)
        return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}

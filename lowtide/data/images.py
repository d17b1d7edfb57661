"""From a file to pixels: one decoder for the check at the door and for training."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError

MAX_PIXELS = 120_000_000
"""The largest image that is read, in pixels: 360 MB of RGB. A compressed file of some kilobytes can
claim any number of them."""

_LARGE_PIXELS = 30_000_000
"""Images above this are decoded one at a time, or sixteen threads would hold sixteen of them."""

_large = threading.Lock()

_ORIENTATION = 0x0112

_MODES = {1: "L", 3: "RGB"}

_HEIF = frozenset({".heic", ".heif", ".hif"})

_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI"),
    *("SGI", "TGA", "TIFF", "WEBP"),
)
"""Pillow's decoders of pixels. Those that run another program (EPS) or only draw (WMF) are not."""

_OTHER_BYTE = (
    {"L": "B", "B": "L", "N": "B"} if sys.byteorder == "little" else {"L": "B", "B": "L", "N": "L"}
)

# The limit above is the one that holds; Pillow's own warns of less than a telephone's camera takes.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@functools.cache
def formats() -> tuple[str, ...]:
    """Name the image formats that can be read here.

    Returns:
        Pillow's names for them. HEIF is one only where `pillow-heif` is installed
        (`pip install "lowtide[heif]"`), AVIF and JPEG 2000 where Pillow was built with them.
    """
    Image.init()
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """Name the suffixes by which a file claims to be an image.

    Returns:
        In lower case, with their dot: those of `formats`, and those of photographs that cannot be
        read here, such as `.heic`, so that they are refused and not passed over in silence.
    """
    readable = set(formats())
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in readable}
    # Pillow counts no .jif, and without their libraries no .avif and no .jp2.
    return frozenset(known | _HEIF | {".jif", ".jfif", ".mpo", ".avif", ".jp2"})


class UnreadableImage(InputError):
    """An image that cannot be decoded (any more); the message names it."""

    def __init__(self, message: str) -> None:
        # A loader's worker hands its exception over as a whole traceback in one string, and
        # builds this class anew from it: the message is what follows the class's name, at the end.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


class Look(NamedTuple):
    """What decoding a whole file has shown of it.

    Attributes:
        fault: Why it cannot be read; None if it can.
        peak: The largest value of a file with 16-bit pixels, -1 for one with 8-bit pixels.
    """

    fault: str | None
    peak: int


def decode(path: Path, channels: int = 3, bits: int = 16) -> Image.Image:
    """Decode one image as a model sees it: upright, opaque, 8 bits, grey or RGB.

    EXIF rotation is applied; transparency is laid over white (plain `convert("RGB")` shows
    whatever colour hides behind it). A 16-bit value v becomes `min(255, v // 2**(bits - 8))`:
    detectors and microscopes store 10, 12 or 14 bits in files of 16, and the upper byte of those
    is almost black.

    Args:
        path: The file.
        channels: 3 for RGB, 1 for grey.
        bits: How many bits of a 16-bit pixel its set uses, see `bits_of`. Of no effect on
            8-bit pixels.

    Returns:
        The decoded image, of mode `RGB` or `L`.

    Raises:
        UnreadableImage: The file is missing, larger than `MAX_PIXELS`, or is not an image that
            Pillow can decode whole.
    """
    try:
        with Image.open(path, formats=formats()) as image, _turn(image):
            wide = _wide(image, path)
            return _upright(image if wide is None else _narrow(wide, bits), image, _MODES[channels])
    except Exception as error:  # decoders of broken bytes raise anything, struct.error included
        raise UnreadableImage(f"cannot read image {path}: {_reason(error, path)}") from error


def look(paths: Sequence[Path]) -> dict[Path, Look]:
    """Decode every image once, in threads, to see which cannot be and how bright 16 bits get.

    A header that parses is no proof: a truncated JPEG passes `Image.verify`.

    Args:
        paths: The files, all of which exist.

    Returns:
        What was seen of each, in the order of `paths`.
    """
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(_look, paths), strict=True))


def bits_of(peak: int) -> int:
    """Tell the depth of 16-bit files from their largest value.

    Args:
        peak: The largest value in a set, 0 to 65535.

    Returns:
        8, 10, 12, 14 or 16: the fewest bits, in the steps in which detectors are built, that
        hold it.
    """
    return max(8, peak.bit_length() + peak.bit_length() % 2)


def _look(path: Path) -> Look:
    try:
        with Image.open(path, formats=formats()) as image, _turn(image):
            # A JPEG is then decoded at an eighth: every byte is still parsed, so truncation shows.
            image.draft(None, (32, 32))
            wide = _wide(image, path)
            if wide is not None:
                return Look(None, int((wide if wide.ndim == 2 else wide[..., :3]).max()))
            _upright(image, image, "RGB")
    except Exception as error:  # as in `decode`
        return Look(_reason(error, path), -1)
    return Look(None, -1)


def _turn(image: Image.Image) -> Any:
    """Refuse what is too large, and wait for one's turn with what is nearly so."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels: expected at most {MAX_PIXELS // 10**6} million"
        )
    return _large if pixels > _LARGE_PIXELS else threading.Lock()


def _wide(image: Image.Image, path: Path) -> np.ndarray | None:
    """Read 16-bit pixels whole, `(H, W)` or `(H, W, C)`; None for 8-bit ones."""
    if image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode == "I" and image.format in {"PNG", "PPM"}:  # 16 bits, in Pillow's only wide mode
        return np.asarray(image)
    stem, wide, order = _raw(image).partition(";16")
    if not wide:
        return None
    high = np.asarray(image).astype(np.uint16)
    if stem not in {"RGB", "RGBA", "RGBX"}:
        if high.max() < 1 << 7:
            raise ValueError(
                f"16-bit {stem} pixels that use less than 16 bits: expected RGB or grey"
            )
        return None
    # Pillow has no mode for 16-bit colours and keeps the upper bytes. Read as of the other byte
    # order, the same file gives the lower ones.
    with Image.open(path, formats=formats()) as again:
        again.tile = [
            (*tile[:3], _replaced(tile[3], f"{stem};16{_OTHER_BYTE[order]}"))  # type: ignore[misc]
            for tile in again.tile
        ]
        low = np.asarray(again).astype(np.uint16)
    both = high << 8 | low
    return both[..., :3] if stem == "RGBX" else both


def _raw(image: Image.Image) -> str:
    """Tell how a file stores its pixels, such as `RGB;16B`."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _replaced(args: object, raw: str) -> object:
    return (raw, *args[1:]) if isinstance(args, tuple) else raw


def _narrow(wide: np.ndarray, bits: int) -> Image.Image:
    return Image.fromarray(np.minimum(wide >> (bits - 8), 255).astype(np.uint8))


def _upright(pixels: Image.Image, source: Image.Image, mode: str) -> Image.Image:
    if pixels.mode in {"I", "F"}:
        raise ValueError(f"32-bit pixels (mode {pixels.mode}) have no range to map to 8 bits")
    if pixels is not source:
        pixels.getexif()[_ORIENTATION] = source.getexif().get(_ORIENTATION, 1)
    ImageOps.exif_transpose(pixels, in_place=True)
    if pixels.has_transparency_data:
        white = Image.new("RGBA", pixels.size, "white")
        white.alpha_composite(pixels.convert("RGBA"))
        pixels = white
    return pixels.convert(mode)


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, FileNotFoundError):
        linked = os.path.islink(path)
        return f"a link to {os.readlink(path)}, which is not there" if linked else "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        if path.suffix.lower() in _HEIF and "HEIF" not in formats():
            return 'HEIC photographs need pillow-heif: pip install "lowtide[heif]"'
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than the {MAX_PIXELS // 10**6} million pixels that are read"
    return str(error).partition("\n")[0] or type(error).__name__

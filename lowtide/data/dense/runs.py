"""COCO's run lengths as they are written: a list of numbers, or text of six bits a character."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..images import MAX_PIXELS
from .faults import Faulty
from .text import numbers

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels: corners, so that the area is (x2 - x1) * (y2 - y1)."""


class Runs(NamedTuple):
    """COCO's run lengths: pixels outside, inside, outside ..., down the columns.

    Attributes:
        counts: The lengths, whose sum is `height * width`.
        height: Of the mask.
        width: Of the mask.
    """

    counts: np.ndarray
    height: int
    width: int

    def paint(self, height: int, width: int) -> np.ndarray:
        """Draw the runs as a mask.

        Args:
            height: Of the image, which is that of the mask.
            width: Of the image.

        Returns:
            1 inside, 0 outside, uint8 `(H, W)`.
        """
        inside = np.arange(len(self.counts), dtype=np.uint8) % 2
        return np.repeat(inside, self.counts).reshape(width, height).T

    def box(self) -> Box:
        """Give the box around the pixels.

        Returns:
            The smallest box around them; an empty one where there are none.
        """
        rows, columns = np.nonzero(self.paint(self.height, self.width))
        if not len(rows):
            return 0.0, 0.0, 0.0, 0.0
        return float(columns.min()), float(rows.min()), columns.max() + 1.0, rows.max() + 1.0


def read_runs(segmentation: dict[str, object]) -> Runs:
    """Read a mask in run lengths.

    Args:
        segmentation: `{"size": [height, width], "counts": list or text}`.

    Returns:
        The runs.

    Raises:
        Faulty: It is no such object, or its runs do not add up to its size.
    """
    size, counts = numbers(segmentation.get("size"), 2), segmentation.get("counts")
    if size is None or not all(s >= 1 and s == s // 1 for s in size):
        raise Faulty("run lengths without a size of two whole numbers")
    height, width = map(int, size)
    if height * width > MAX_PIXELS:
        raise Faulty(f"run lengths of more than {MAX_PIXELS // 10**6} million pixels")
    if isinstance(counts, str):
        lengths = _decompress(counts)
    elif (listed := numbers(counts)) is not None:
        lengths = np.asarray(listed)
    else:
        raise Faulty("run lengths that are neither a list of numbers nor text")
    if not ((lengths >= 0) & (lengths <= MAX_PIXELS) & (lengths == np.floor(lengths))).all():
        raise Faulty("run lengths that are no counts of pixels")
    if lengths.sum() != height * width:
        raise Faulty(f"run lengths that do not add up to {height} x {width} pixels")
    return Runs(lengths.astype(np.int64), height, width)


def _decompress(text: str) -> np.ndarray:
    """Undo COCO's `rleToString`."""
    # Each character, less 48, has 5 bits of a number, the lowest first, and a sixth that says
    # whether more follow; the top bit of the last is the sign. From the fourth on, a number is
    # the difference to the run two before it.
    codes = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise Faulty("run lengths whose text is not COCO's")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:
        raise Faulty("run lengths that are no counts of pixels")
    found = np.add.reduceat((codes & 31) << 5 * places, starts)
    found -= np.where(codes[ends] & 16, 1 << 5 * (places[ends] + 1), 0)
    found[1::2] = np.cumsum(found[1::2])
    found[2::2] = np.cumsum(found[2::2])
    return found

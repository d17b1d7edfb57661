"""One object in an image, and the three ways in which files outline it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...extras import extra
from .masks import read_mask
from .runs import Box, Runs, read_runs

Pixels = np.ndarray


class Polygons(NamedTuple):
    """Rings of corners; the object is all that lies in any of them.

    Attributes:
        rings: Each `x1 y1 x2 y2 ...` in pixels, float64.
    """

    rings: tuple[Pixels, ...]

    def paint(self, height: int, width: int) -> Pixels:
        """Fill the rings as COCO's own tools do, so that areas are COCO's.

        Args:
            height: Of the image.
            width: Of the image.

        Returns:
            1 inside, 0 outside, uint8 `(H, W)`.
        """
        coco = extra("pycocotools.mask", "dense")
        filled = coco.merge(coco.frPyObjects([r.tolist() for r in self.rings], height, width))
        return read_runs({**filled, "counts": filled["counts"].decode()}).paint(height, width)

    def box(self) -> Box:
        """Give the box around the rings.

        Returns:
            The smallest box around all corners.
        """
        corners = np.concatenate(self.rings).reshape(-1, 2)
        (left, top), (right, bottom) = corners.min(0), corners.max(0)
        return float(left), float(top), float(right), float(bottom)


class Region(NamedTuple):
    """All pixels of one value in an index mask, as VOC's `SegmentationObject` has them.

    Attributes:
        path: The mask.
        value: The object's number in it.
    """

    path: Path
    value: int

    def paint(self, height: int, width: int) -> Pixels:
        """Read the object's pixels from the mask.

        Args:
            height: Of the image, which is that of the mask.
            width: Of the image.

        Returns:
            1 inside, 0 outside, uint8 `(H, W)`.
        """
        return (read_mask(self.path) == self.value).astype(np.uint8)


Shape = Polygons | Runs | Region


class Annotation(NamedTuple):
    """One object.

    Attributes:
        label: The name of its class.
        box: Around it.
        shape: Its outline; None where only the box is known.
        crowd: Whether it stands for several objects or is too hard to count: COCO's `iscrowd`,
            VOC's `difficult`. Such an object is neither trained on nor counted as missed.
        where: The place that says so, such as `train.json annotation 12`.
    """

    label: str
    box: Box
    shape: Shape | None = None
    crowd: bool = False
    where: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image and what is labelled in it.

    Attributes:
        path: The image's file.
        where: The place that names it.
        number: COCO's image id; -1 where the format has none.
        size: Height and width as the format declares them; None where it does not.
        objects: What is in it.
        mask: The file of its semantic mask.
    """

    path: Path
    where: str
    number: int = -1
    size: tuple[int, int] | None = None
    objects: tuple[Annotation, ...] = ()
    mask: Path | None = None

"""Cityscapes' folders: `leftImg8bit/train/CITY/` and `gtFine/train/CITY/`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...listing import role
from ...tree import children
from ..listing import DenseFormat, DenseListing, Kind
from ..masks import IGNORE
from ..objects import AnnotatedImage
from .mask_pairs import images_below

CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
)
"""The 19 that are trained and scored, in the order of `trainId`."""

IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Their values in `labelIds` (cityscapesscripts, `labels.py`); the others are ignored."""

LARGEST = 33
_IMAGE = "_leftImg8bit"
_TRAIN_IDS = "labelTrainIds"
_COARSE = ("gtFine", "gtCoarse")


def _root(root: Path) -> Path | None:
    """Find the folder of masks, the fine ones first."""
    if not (root / "leftImg8bit").is_dir():
        return None
    return next((root / name for name in _COARSE if (root / name).is_dir()), None)


def read_cityscapes(root: Path, kind: Kind | None = None) -> DenseListing:
    """Read Cityscapes (Cordts et al. 2016).

    `*_labelTrainIds.png` is read where it is there for every image, else `*_labelIds.png`, whose
    34 values become the 19 classes that are scored. The test split, whose masks are not public, is
    passed over.

    Args:
        root: The folder.
        kind: Of no effect: such masks say a class for every pixel.

    Returns:
        Semantic masks.
    """
    del kind
    masks = _root(root) or root
    splits = {
        which: images_below(child)
        for child in children(root / "leftImg8bit")
        if child.is_dir() and (which := role(child.name)) and which != "test"
    }
    images = [path for part in splits.values() for path in part]
    trained = bool(images) and all(
        _mask(path, root, masks, _TRAIN_IDS).is_file() for path in images
    )
    ending = _TRAIN_IDS if trained else "labelIds"
    listed = {
        which: [
            AnnotatedImage(path, path.stem, mask=_mask(path, root, masks, ending)) for path in part
        ]
        for which, part in splits.items()
    }
    values = np.arange(len(CLASSES))
    if not trained:
        values = np.full(LARGEST + 1, IGNORE)
        values[list(IDS)] = np.arange(len(CLASSES))
    notes = ("test: its masks are not public, passed over",) if _has_test(root) else ()
    return DenseListing("Cityscapes", root, listed, CLASSES, "semantic", values, (), notes)


def _has_test(root: Path) -> bool:
    return (root / "leftImg8bit" / "test").is_dir()


def _mask(image: Path, root: Path, masks: Path, ending: str) -> Path:
    """Name an image's mask: `a_000000_000019_gtFine_labelIds.png`."""
    place = image.parent.relative_to(root / "leftImg8bit")
    stem = image.stem.removesuffix(_IMAGE)
    return masks / place / f"{stem}_{masks.name}_{ending}.png"


FORMAT = DenseFormat(_root, read_cityscapes, rank=10, about="Cityscapes")

"""Roboflow's masks: `train/1.jpg` and `train/1_mask.png` side by side, and `_classes.csv`."""

from __future__ import annotations

import csv
from pathlib import Path

from ....errors import InputError, shown
from ...listing import role
from ...tree import children, is_image
from ..faults import Fault
from ..listing import DenseFormat, DenseListing, Kind
from ..objects import AnnotatedImage
from ..text import bounded, named, read_names

_CLASSES = "_classes.csv"
_MASK = "_mask"


def _folders(root: Path) -> dict[str, Path]:
    """Find the folders that hold masks: the splits', or the folder itself."""
    if not root.is_dir():
        return {}
    found = {which: child for child in children(root) if (which := role(child.name))}
    found = {which: child for which, child in found.items() if child.is_dir() and _masks(child)}
    return found or ({"all": root} if _masks(root) else {})


def _masks(folder: Path) -> dict[str, Path]:
    """List masks by the name of their image."""
    there = [path for path in children(folder) if path.stem.endswith(_MASK) and is_image(path)]
    return {path.stem.removesuffix(_MASK): path for path in there}


def read_roboflow_masks(root: Path, kind: Kind | None = None) -> DenseListing:
    """Read images and masks that lie side by side.

    Args:
        root: The folder of them, or of the splits' folders.
        kind: Of no effect: such masks say a class for every pixel.

    Returns:
        Every value from 0 is a class, named by `_classes.csv` or `classes.txt`.

    Raises:
        InputError: A file of names is wrong, or two splits have different ones.
    """
    del kind
    faults: list[Fault] = []
    splits = {}
    known: dict[tuple[str, ...], str] = {}
    for which, folder in _folders(root).items():
        masks = _masks(folder)
        images = [p for p in children(folder) if is_image(p) and p not in masks.values()]
        splits[which] = [
            AnnotatedImage(p, p.name, mask=masks.pop(p.stem)) for p in images if p.stem in masks
        ]
        paired = {image.path for image in splits[which]}
        faults += [Fault("missing masks", f"{p} has none") for p in images if p not in paired]
        faults += [Fault("missing images", f"{p} has none") for p in masks.values()]
        if names := _names(folder / _CLASSES):
            known[names] = which
    if len(known) > 1:
        raise InputError(f"{root}: {' and '.join(known.values())} have different {_CLASSES}")
    classes = next(iter(known), None) or read_names(root)
    return DenseListing("Roboflow masks", root, splits, classes, "semantic", None, tuple(faults))


def _names(path: Path) -> tuple[str, ...] | None:
    """Read lines `value, name` below a heading."""
    if not path.is_file():
        return None
    rows = [[cell.strip() for cell in row] for row in csv.reader(bounded(path).splitlines())]
    pairs = [row for row in rows[1:] if row]
    if not all(len(row) == 2 and row[0].isdecimal() for row in pairs):
        odd = next(row for row in pairs if len(row) != 2 or not row[0].isdecimal())
        raise InputError(f"{path}: expected the value of pixels and a name, got {shown(odd)}")
    if len(pairs) != len(dict(pairs)):
        raise InputError(f"{path}: a value has two names")
    return named(dict(pairs), str(path))


FORMAT = DenseFormat(_folders, read_roboflow_masks, rank=70, about="images beside *_mask.png")

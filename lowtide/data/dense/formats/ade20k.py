"""ADE20K's folders: `images/training` and `annotations/training`, 0 is no class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....errors import InputError
from ...listing import role
from ...tree import children
from ..faults import Fault
from ..listing import DenseFormat, DenseListing, Kind
from ..masks import IGNORE
from ..text import bounded, read_names
from .mask_pairs import has_masks, pair

CLASSES = 150
_OBJECTS = "objectInfo150.txt"


def _roles(root: Path) -> dict[str, str]:
    """Find `training` and `validation`, by which names ADE20K is known."""
    images, masks = root / "images", root / "annotations"
    if not (images.is_dir() and masks.is_dir()):
        return {}
    both = [child.name for child in children(images) if (masks / child.name).is_dir()]
    found = {which: name for name in both if (which := role(name))}
    return found if "training" in both and has_masks(masks) else {}


def read_ade20k(root: Path, kind: Kind | None = None) -> DenseListing:
    """Read ADE20K (Zhou et al. 2017; `ADEChallengeData2016`).

    Value k from 1 up is class k - 1; 0, "other objects", is ignored, as the benchmark and
    mmsegmentation's `reduce_zero_label` have it. Other sets whose 0 is a class or a background
    belong into `images/train` and `masks/train`.

    Args:
        root: The folder.
        kind: Of no effect: such masks say a class for every pixel.

    Returns:
        Semantic masks, with the names of `objectInfo150.txt` or `classes.txt`.

    Raises:
        InputError: The file of names is wrong.
    """
    del kind
    faults: list[Fault] = []
    splits = {
        which: pair(root / "images" / name, root / "annotations" / name, faults)
        for which, name in _roles(root).items()
    }
    classes = read_names(root) or _names(root) or tuple(str(n) for n in range(1, CLASSES + 1))
    values = np.array([IGNORE, *range(len(classes))])
    return DenseListing("ADE20K", root, splits, classes, "semantic", values, tuple(faults))


def _names(root: Path) -> tuple[str, ...] | None:
    """Read `objectInfo150.txt`: a heading, then lines whose last column is a list of names."""
    path = root / _OBJECTS
    if not path.is_file():
        return None
    lines = [line for line in bounded(path).splitlines()[1:] if line.strip()]
    names = tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines)
    if not all(names):
        raise InputError(f"{path}: expected columns set apart by tabs, a name in the last")
    twice = {name for name in names if names.count(name) > 1}
    return tuple(f"{name} {n}" if name in twice else name for n, name in enumerate(names, 1))


FORMAT = DenseFormat(_roles, read_ade20k, rank=10, about="ADE20K")

"""Index masks beside images: `images/train/1.jpg` and `masks/train/1.png`, and their like."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ....errors import InputError
from ...listing import role
from ...tree import children, names, walk
from ..faults import Fault
from ..listing import DenseFormat, DenseListing, Kind
from ..objects import AnnotatedImage
from ..text import read_names

IMAGES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
MASKS = ("masks", "mask", "labels", "annotations", "ann_dir", "gt", "SegmentationClass")
ENDINGS = ("", "_mask", "_label", "_labels", "_gt", "_seg", "_segmentation", "-mask")
"""What a mask's name may have behind its image's."""


BESIDE = ("annot", "_labels", "_masks", "_mask", "_annotations")
"""What a folder of masks may have behind the name of a split: CamVid's `trainannot`."""


class _Pair(NamedTuple):
    split: str
    images: Path
    masks: Path


def _named(folder: Path, known: tuple[str, ...]) -> list[Path]:
    lower = {name.lower() for name in known}
    there = [child for child in children(folder) if child.name.lower() in lower]
    return [child for child in there if child.is_dir()]


def _roles(folder: Path) -> dict[str, Path]:
    """Find the folders of splits."""
    found: dict[str, Path] = {}
    for child in children(folder):
        if (which := role(child.name)) and child.is_dir():
            if which in found:
                raise InputError(f"{folder}: both {found[which].name} and {child.name} are {which}")
            found[which] = child
    return found


def _pairs(root: Path) -> list[_Pair]:
    """Find folders of images and of their masks."""
    if not root.is_dir():
        return []
    images, masks = _named(root, IMAGES), [m for m in _named(root, MASKS) if has_masks(m)]
    if masks and (images or _roles(root)):
        of_masks, beside = _roles(masks[0]), images[0] if images else root
        of_images = _roles(beside)
        if of_masks:
            return [_Pair(w, of_images[w], of_masks[w]) for w in of_images if w in of_masks]
        return [_Pair("all", images[0], masks[0])] if images and not of_images else []
    if siblings := [
        _Pair(which, folder, below)
        for which, folder in _roles(root).items()
        for below in (folder.with_name(folder.name + ending) for ending in BESIDE)
        if below.is_dir() and has_masks(below)
    ]:
        return siblings
    within = {which: (_named(f, IMAGES), _named(f, MASKS)) for which, f in _roles(root).items()}
    return [
        _Pair(which, images[0], masks[0])
        for which, (images, masks) in within.items()
        if images and masks and has_masks(masks[0])
    ]


def has_masks(folder: Path) -> bool:
    """Tell whether a folder holds images, as masks are.

    Args:
        folder: An existing folder.

    Returns:
        Whether a file below it claims to be one; that it is no JPEG, which masks cannot be, is
        seen when it is read.
    """
    return bool(images_below(folder))


def images_below(folder: Path) -> list[Path]:
    """List the images below a folder, in a fixed order.

    Args:
        folder: An existing folder.

    Returns:
        Their paths.
    """
    return walk(folder, set())[0]


def pair(images: Path, masks: Path, faults: list[Fault]) -> list[AnnotatedImage]:
    """Find the mask of each image: the same path with another ending, or else the same name.

    Args:
        images: Folder of images.
        masks: Folder of masks.
        faults: Takes images without a mask and masks without an image.

    Returns:
        The images that have one.
    """
    left, listed = _by_stem(masks), _by_stem(images)
    if not any(stem + end in left for stem in listed for end in ENDINGS):
        left = {path.stem: path for path in left.values()}  # such as annotations/trimaps/
    found = []
    for stem, path in listed.items():
        mask = next((left.pop(stem + end) for end in ENDINGS if stem + end in left), None)
        if mask is None:
            faults.append(Fault("missing masks", f"{path} has none in {masks}"))
        else:
            found.append(AnnotatedImage(path, f"{images.name}/{stem}", mask=mask))
    faults += [Fault("missing images", f"{path} has none in {images}") for path in left.values()]
    return found


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in images_below(folder):
        first = found.setdefault(_stem(path, folder), path)
        if first is not path:
            raise InputError(f"{first} and {path} have one name: expected one image of each")
    return found


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def read_mask_pairs(root: Path, kind: Kind | None = None) -> DenseListing:
    """Read pairs of images and index masks.

    Args:
        root: The folder: `images/` and `masks/` with or without a folder for each split, or
            `images/` and `masks/` in each split's folder, or the splits' folders beside `masks/`.
        kind: Of no effect: such masks say a class for every pixel.

    Returns:
        Every value from 0 is a class, and 255 is ignored.

    Raises:
        InputError: A `classes.txt` is wrong.
    """
    del kind
    faults: list[Fault] = []
    splits = {which: pair(images, masks, faults) for which, images, masks in _pairs(root)}
    classes = read_names(root)
    return DenseListing(
        "index masks", root, splits, classes, "semantic", faults=tuple(faults), notes=_note(root)
    )


def _note(root: Path) -> tuple[str, ...]:
    there = {which for which, _, _ in _pairs(root)}
    bare = [name for name in names(root) if (found := role(name)) and found not in there]
    return (f"{', '.join(bare)}: no masks, passed over",) if bare and "all" not in there else ()


FORMAT = DenseFormat(_pairs, read_mask_pairs, rank=80, about="images/ with masks/ (index PNGs)")

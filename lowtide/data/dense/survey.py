"""Look at every image and mask of a listing: what is wrong, what is kept of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..images import UnreadableImage, bits_of, look
from ..labels import akin
from .faults import Fault
from .listing import DenseListing
from .masks import IGNORE, read_mask
from .objects import AnnotatedImage, Annotation, Polygons, Region
from .runs import Box, Runs
from .sizes import measure

Counts = np.ndarray
EDGE = 0.01
"""Pixels that a box may reach over the edge by rounding."""
THIN = 1e-3
"""Pixels across a box of which nothing is left: float32 tells no less apart at 16,384."""


@dataclasses.dataclass(frozen=True)
class Survey:
    """What decoding every image and mask has shown.

    Attributes:
        listing: Of the images that can be read, with boxes inside them and none empty.
        classes: Names of the classes.
        values: Class of each stored value of a semantic mask.
        faults: All that is wrong.
        sizes: Height and width of each image that can be read.
        pixels: Pixels of each stored value from 0, by mask.
        bits: How many bits 16-bit pixels use.
        notes: What a reader of the run record should know.
    """

    listing: DenseListing
    classes: tuple[str, ...]
    values: Counts
    faults: tuple[Fault, ...]
    sizes: dict[Path, tuple[int, int]]
    pixels: dict[Path, Counts]
    bits: int
    notes: tuple[str, ...]


def survey(listing: DenseListing) -> Survey:
    """Decode every image and every mask once.

    Args:
        listing: What a source says.

    Returns:
        What was seen, nothing raised for it.
    """
    faults = list(listing.faults)
    images = [image for part in listing.splits.values() for image in part]
    sizes, bits = _sizes(images, faults)
    masks = _masks(images, sizes, faults)
    classes, values, notes = _classes(listing, masks, faults)
    splits = {
        which: [
            _kept(image, sizes[image.path], faults)
            for image in part
            if image.path in sizes and (image.mask is None or image.mask in masks)
        ]
        for which, part in listing.splits.items()
    }
    return Survey(
        listing=dataclasses.replace(listing, splits=splits),
        classes=classes,
        values=values,
        faults=tuple(faults),
        sizes=sizes,
        pixels=masks,
        bits=bits,
        notes=(*akin(classes, listing.kind), *notes),
    )


def _sizes(
    images: Sequence[AnnotatedImage], faults: list[Fault]
) -> tuple[dict[Path, tuple[int, int]], int]:
    """Decode every image; give the sizes of those that can be read, and the depth of them all."""
    there = [image.path for image in images if os.path.isfile(image.path)]
    faults += [
        Fault("missing images", f"{image.path} ({image.where})")
        for image in images
        if not os.path.isfile(image.path)
    ]
    looks = look(there)
    bad = {path: seen.fault for path, seen in looks.items() if seen.fault}
    faults += [Fault("unreadable images", f"{path}: {why}") for path, why in bad.items()]
    measured = measure([path for path in there if path not in bad])
    peaks = [seen.peak for seen in looks.values() if seen.peak >= 0]
    sizes = {path: size for path, size in measured.items() if size is not None}
    return sizes, bits_of(max(peaks)) if peaks else 16


def _masks(
    images: Sequence[AnnotatedImage], sizes: dict[Path, tuple[int, int]], faults: list[Fault]
) -> dict[Path, Counts]:
    """Count the values of each mask that can be read."""
    of_image = {image.mask: image.path for image in images if image.mask is not None}
    regions = {
        o.shape.path: image.path
        for image in images
        for o in image.objects
        if isinstance(o.shape, Region)
    }
    paths = list({**regions, **of_image})
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        seen = dict(zip(paths, pool.map(_values, paths), strict=True))
    for path, image in {**regions, **of_image}.items():
        shape, counts, fault = seen[path]
        if fault:
            kind = "unreadable masks" if os.path.isfile(path) else "missing masks"
            faults.append(Fault(kind, fault.removeprefix("cannot read mask ")))
        elif image in sizes and shape != sizes[image]:
            said = f"{path} is {_by(shape)}, {image.name} {_by(sizes[image])}"
            faults.append(Fault("masks of another size than their image", said))
    return {path: seen[path][1] for path in of_image if not seen[path][2]}


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _values(path: Path) -> tuple[tuple[int, int], Counts, str]:
    try:
        mask = read_mask(path)
    except UnreadableImage as error:
        return (0, 0), np.zeros(0, dtype=np.int64), str(error)
    values, counts = np.unique(mask, return_counts=True)
    if values[0] < 0 or values[-1] > 0xFFFF:
        said = f"cannot read mask {path}: value {values[-1]}, expected classes from 0 to 254"
        return (0, 0), np.zeros(0, dtype=np.int64), said
    found = np.zeros(int(values[-1]) + 1, dtype=np.int64)
    found[values] = counts
    height, width = mask.shape
    return (height, width), found, ""


def _classes(
    listing: DenseListing, masks: dict[Path, Counts], faults: list[Fault]
) -> tuple[tuple[str, ...], Counts, tuple[str, ...]]:
    """Settle which stored value is which class."""
    classes, values = listing.classes, listing.values
    present = sorted({int(value) for counts in masks.values() for value in np.flatnonzero(counts)})
    notes: tuple[str, ...] = ()
    if values is None and present == [0, IGNORE] and (classes is None or len(classes) == 2):
        # Nothing else occurs in the whole set: black and white, and not one class and a border.
        values = np.array([0, *[IGNORE] * 254, 1])
        classes = classes or ("0", "255")
        notes = ("masks hold 0 and 255 only: 255 is the second class, nothing is ignored",)
    elif values is None and classes is not None and present == [0, IGNORE]:
        notes = (f"masks hold 0 and 255 only, of {len(classes)} classes, and 255 is ignored",)
    if classes is None:
        classes = tuple(map(str, range(max((v for v in present if v < IGNORE), default=0) + 1)))
        notes = ("no classes.txt: classes are called by their values in the masks",)
    if values is None:
        values = np.arange(len(classes))
    known = set(range(len(values))) | {IGNORE}
    for path, counts in masks.items():
        if beyond := [int(v) for v in np.flatnonzero(counts) if int(v) not in known]:
            said = f"{path} has value {beyond[0]}, and there are {len(classes)} classes"
            faults.append(Fault("classes beyond the names", f"{said} (a background is one)"))
    return classes, values, notes


def _kept(image: AnnotatedImage, size: tuple[int, int], faults: list[Fault]) -> AnnotatedImage:
    if image.size is not None and image.size != size:
        turned = " (EXIF may turn it)" if image.size == size[::-1] else ""
        said = f"{image.path} is {_by(size)}{turned}, {image.where} says {_by(image.size)}"
        faults.append(Fault("images of another size than declared", said))
        return image
    seen: set[tuple[str, Box]] = set()
    for given in image.objects:
        if (given.label, given.box) in seen:
            where = given.where or image.where
            faults.append(Fault("duplicate objects", f"{where}: {given.label} {_text(given.box)}"))
        seen.add((given.label, given.box))
    return dataclasses.replace(image, objects=tuple(_inside(image.objects, size, faults)))


def _inside(
    objects: Sequence[Annotation], size: tuple[int, int], faults: list[Fault]
) -> Iterator[Annotation]:
    """Cut boxes at the edges of their image; drop what is empty, or of which nothing is left."""
    height, width = size
    for given in objects:
        left, top, right, bottom = given.box
        said = f"{given.where}: {given.label} {_text(given.box)} in {_by(size)}"
        if right - left < THIN or bottom - top < THIN:
            faults.append(Fault("empty boxes", said))
            continue
        if isinstance(given.shape, Runs) and not given.shape.counts[1::2].any():
            faults.append(Fault("empty outlines", f"{said}, whose run lengths hold no pixel"))
            continue
        box = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
        if box[2] - box[0] < THIN or box[3] - box[1] < THIN:
            faults.append(Fault("boxes outside their image", said))
            continue
        if max(abs(a - b) for a, b in zip(box, given.box, strict=True)) > EDGE:
            faults.append(Fault("boxes across the edge of their image", said))
        if isinstance(given.shape, Runs) and given.shape[1:] != size:
            of = _by((given.shape.height, given.shape.width))
            said = f"{given.where}: run lengths of {of}, the image is {_by(size)}"
            faults.append(Fault("masks of another size than their image", said))
        elif isinstance(given.shape, Polygons) and _far(given.shape, size):
            said = f"{given.where}: a polygon far outside its image of {_by(size)}"
            faults.append(Fault("objects that are not understood", said))
        yield given._replace(box=box)


def _far(shape: Polygons, size: tuple[int, int]) -> bool:
    """Tell whether a corner lies more than an image's side outside, where filling would not end."""
    left, top, right, bottom = shape.box()
    height, width = size
    return left < -width or top < -height or right > 2 * width or bottom > 2 * height


def _text(box: Box) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in box) + ")"

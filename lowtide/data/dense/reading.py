"""Read any folder of dense labels, refusing at the door what cannot work."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ... import values
from ...errors import InputError, UnknownName
from ...extras import extra
from ..dataset import relative
from ..division import divide
from ..listing import SPLITS
from .faults import FAULTS, Fault
from .folder import BACKGROUND, DenseFolder, DenseSplit
from .formats import find
from .listing import KINDS, DenseListing, Kind, objects_of
from .objects import AnnotatedImage, Polygons
from .survey import Survey, survey

_UNREADABLE = ("unreadable images", "unreadable masks")


def read(
    source: Path | str,
    *,
    kind: Kind | None = None,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    skip_bad_images: bool = False,
) -> DenseFolder:
    """Read images with dense labels and check all of them once.

    The format is recognised by what the folder holds. Where train is declared but val is not, val
    is split off train; where nothing is declared, val and test are.

    Args:
        source: A folder, COCO's JSON or YOLO's YAML.
        kind: `boxes`, `instances` or `semantic`; by default the richest that the folder holds.
            Instances can be read as boxes, and as semantic masks: background 0, then the classes;
            what two classes claim is ignored.
        seed: Decides, with each file's relative path alone, which files a split takes.
        val_fraction: Share of the images that goes to val, where it is split off.
        test_fraction: Share of the images that goes to test, where nothing is declared.
        skip_bad_images: Leave out images and masks that cannot be read, and record them, instead
            of refusing.

    Returns:
        The folder.

    Raises:
        InputError: The source cannot work; the message names the first offender.
        UnknownName: There is no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise UnknownName("kind of labels", kind, KINDS)
    _refuse_shares(val_fraction, test_fraction)
    listing = find(source, kind)
    seen = survey(listing)
    skipped = refuse(seen.faults, listing.root, skip_bad_images)
    kind = kind or listing.kind
    splits, notes = divide(seen.listing.splits, listing.root, seed, val_fraction, test_fraction)
    classes = seen.classes
    if kind == "semantic" and listing.kind != kind:
        classes = (BACKGROUND, *(name for name in classes if name != BACKGROUND))
        notes += ["semantic masks are painted from instances, 0 is the background"]
    _refuse_nothing(listing, splits, kind)
    if kind != "boxes" and any(isinstance(o.shape, Polygons) for o in objects_of(splits)):
        extra("pycocotools.mask", "dense")
    return DenseFolder(
        classes=classes,
        kind=kind,
        splits={
            which: DenseSplit(tuple(splits[which]), classes, kind, seen.values, seen.bits)
            for which in SPLITS
            if splits.get(which)
        },
        format=listing.format,
        root=listing.root,
        notes=(*listing.notes, *seen.notes, *_depth(seen), *_treated(seen.faults), *notes),
        skipped=skipped,
        bits=seen.bits,
    )


def refuse(faults: Sequence[Fault], root: Path, skip_bad_images: bool) -> tuple[str, ...]:
    """Refuse faults with which nothing could be learnt, or the wrong thing.

    Args:
        faults: All that were found.
        root: The folder, for the message.
        skip_bad_images: Whether images and masks that cannot be read are left out instead.

    Returns:
        The images and masks that are left out.

    Raises:
        InputError: There is such a fault; the first of the gravest kind is named.
    """
    for kind, treatment in FAULTS.items():
        found = [fault.where for fault in faults if fault.kind == kind]
        if not found or treatment != "refused" or (kind in _UNREADABLE and skip_bad_images):
            continue
        way = " (--skip-bad-images leaves them out)" if kind in _UNREADABLE else ""
        first = f"{found[0]}{'; ...' if len(found) > 1 else ''}"
        raise InputError(f"{root}: {kind}: {len(found)}, first {first}{way}")
    return tuple(fault.where for fault in faults if fault.kind in _UNREADABLE)


def _treated(faults: Sequence[Fault]) -> list[str]:
    """Count what was dropped or changed."""
    counted = defaultdict(list)
    for fault in faults:
        counted[fault.kind].append(fault.where)
    return [
        f"{kind}: {len(counted[kind])} {treatment} (first {counted[kind][0]})"
        for kind, treatment in FAULTS.items()
        if treatment in {"dropped", "clipped"} and counted[kind]
    ]


def _depth(seen: Survey) -> list[str]:
    if seen.bits == 16:
        return []
    return [f"16-bit pixels are taken for {seen.bits} bits, v is read as v / {1 << seen.bits - 8}"]


def _refuse_shares(val_fraction: float, test_fraction: float) -> None:
    values.read("val_fraction", values.Share, val_fraction)
    values.read("test_fraction", values.Share, test_fraction)
    if val_fraction + test_fraction >= 1:
        raise InputError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction}: nothing is left for "
            "train"
        )


def _refuse_nothing(
    listing: DenseListing, splits: dict[str, list[AnnotatedImage]], kind: Kind
) -> None:
    if not any(splits.values()):
        raise InputError(f"{listing.root} holds no images that can be read ({listing.format})")
    if listing.kind != "semantic" and not any(True for _ in objects_of(splits)):
        raise InputError(f"{listing.root}: no image has an object to learn ({listing.format})")
    real = defaultdict(list)
    for which, part in splits.items():
        for image in part:
            # By the real folder, as for images with classes: a linked file is a copy, see `check`.
            folder = os.path.realpath(image.path.parent)
            real[os.path.join(folder, image.path.name)].append((which, image))
    for twice in (found for found in real.values() if len(found) > 1):
        (first, image), (second, other) = twice[:2]
        raise InputError(
            f"{relative(image.path, listing.root)} is listed more than once: {image.where} "
            f"({first}), {other.where} ({second})"
        )

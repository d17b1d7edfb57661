"""Pascal VOC's folders: `Annotations/*.xml`, `JPEGImages`, `ImageSets`, `SegmentationObject`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from ....errors import InputError, shown
from ...images import UnreadableImage
from ...listing import role
from ...tree import children, is_image, names
from ..faults import Fault, Faulty, finite
from ..listing import DenseFormat, DenseListing, Kind, objects_of, unknown_labels
from ..masks import IGNORE, read_mask
from ..objects import AnnotatedImage, Annotation, Region
from ..runs import Box
from ..text import OBJECTS, bounded, parse_xml, read_names

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""VOC's own 20, in the order of the values 1 to 20 of its masks."""

_XML = ("annotations", "annotation", "xmls", "xml")
_IMAGES = ("jpegimages", "images", "image", "imgs", "pngimages")


class _Part(NamedTuple):
    split: str
    xml: Path
    images: Path


def _folder(root: Path, known: tuple[str, ...]) -> Path | None:
    there = [child for child in children(root) if child.name.lower() in known and child.is_dir()]
    return there[0] if there else None


def _parts(root: Path) -> list[_Part]:
    """Find folders of XML and of their images: VOC's own, or one for each split (Roboflow's)."""
    if not root.is_dir():
        return []
    xml = _folder(root, _XML)
    if xml is not None and not _holds(xml):
        xml = _folder(xml, _XML)  # Oxford's pets: annotations/xmls/
    if xml is not None and _holds(xml):
        return [_Part("all", xml, _folder(root, _IMAGES) or xml)]
    if _holds(root) and any(is_image(Path(name)) for name in names(root)):
        return [_Part("all", root, root)]
    found = []
    for child in children(root):
        if (which := role(child.name)) and child.is_dir():
            below = _folder(child, _XML) or child
            if _holds(below):
                found.append(_Part(which, below, _folder(child, _IMAGES) or child))
    return found


def _holds(folder: Path) -> bool:
    return any(name.lower().endswith(".xml") for name in names(folder)[:200])


def _claims(root: Path) -> bool:
    if not root.is_dir():
        return False
    return bool(_parts(root)) or (
        "SegmentationClass" in names(root) and _folder(root, _IMAGES[:1]) is not None
    )


def read_voc(root: Path, kind: Kind | None = None) -> DenseListing:
    """Read Pascal VOC's folders.

    VOC counts pixels from 1 and a box holds its last pixel: its box is here (xmin - 1, ymin - 1,
    xmax, ymax). Many tools write corners from 0 instead; where a 0 occurs anywhere in the set, all
    of its boxes are taken as they are written, and a note says so. Objects marked `difficult` are
    crowds. Splits are those of `ImageSets/Main`, for masks those of `ImageSets/Segmentation`.

    Args:
        root: The folder.
        kind: `boxes` are those of the XML; `semantic` masks those of `SegmentationClass`;
            `instances` those of `SegmentationObject`, with the class that most of their pixels
            have in `SegmentationClass`. By default the richest of these that is there.

    Returns:
        What it lists.

    Raises:
        InputError: A file is wrong.
    """
    masks = root / "SegmentationClass"
    objects = root / "SegmentationObject"
    if kind in {None, "instances"} and masks.is_dir() and objects.is_dir():
        return _read_masks(root, "instances")
    if masks.is_dir() and (kind == "semantic" or not _parts(root)):
        return _read_masks(root, "semantic")
    return _read_boxes(root)


def _read_boxes(root: Path) -> DenseListing:
    faults: list[Fault] = []
    splits: dict[str, list[AnnotatedImage]] = {}
    notes: list[str] = []
    for part in _parts(root):
        images = _by_stem(part.images)
        files = {path.stem: path for path in children(part.xml) if path.suffix.lower() == ".xml"}
        sets = _sets(root, "Main") if part.split == "all" else {}
        for which, stems in (sets or {part.split: list(files)}).items():
            if not any(stem in files for stem in stems):
                notes.append(f"{which}: no XML for its {len(stems)} images, passed over")
                continue
            splits[which] = [_image(stem, files, images, part, faults) for stem in stems]
        if not sets and (bare := images.keys() - files.keys()):
            notes.append(f"{len(bare)} images have no XML and were passed over")
    found = {o.label for o in objects_of(splits)}
    splits, more = _from_zero(splits)
    classes = _names(root) or tuple(sorted(found))
    faults += unknown_labels(splits, classes)
    return DenseListing(
        "Pascal VOC", root, splits, classes, "boxes", None, tuple(faults), (*notes, *more)
    )


def _by_stem(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in children(folder) if is_image(path)}


def _sets(root: Path, name: str) -> dict[str, list[str]]:
    """Read `ImageSets`: names without ending, one a line; train and val go before trainval."""
    folder = root / "ImageSets" / name
    found: dict[str, list[str]] = {}
    for which in ("train", "val", "test", "trainval"):
        path = folder / f"{which}.txt"
        if path.is_file() and not (which == "trainval" and found.keys() & {"train", "val"}):
            lines = [line.split() for line in bounded(path).splitlines()]
            found[which.replace("trainval", "train")] = [line[0] for line in lines if line]
    return found


def _names(root: Path) -> tuple[str, ...] | None:
    given = read_names(root)
    if given is None and (root / "class_names.txt").is_file():
        lines = [line.strip() for line in bounded(root / "class_names.txt").splitlines()]
        given = tuple(line for line in lines if line and line != "__ignore__")
    if given is None:
        return None
    return tuple(name for name in given if name.strip("_").lower() != "background")


def _names_of_masks(root: Path, kind: Kind) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Name the values of masks from 1: by `classes.txt`, or as VOC's own where objects are its."""
    if given := _names(root):
        return given, ()
    xml = _folder(root, _XML)
    files = [path for path in children(xml) if path.suffix == ".xml"] if xml else []
    found = {e.findtext("name") or "" for path in files for e in parse_xml(path).iter("object")}
    if found and found <= set(CLASSES):
        return CLASSES, ("no classes.txt: values 1 to 20 of masks are taken as VOC's own classes",)
    if kind == "instances":
        raise InputError(f"{root}: expected classes.txt, which names the values of masks from 1")
    return None, ()


def _image(
    stem: str,
    files: Mapping[str, Path],
    images: Mapping[str, Path],
    part: _Part,
    faults: list[Fault],
) -> AnnotatedImage:
    """Read one image's XML, corners as they are written."""
    path = images.get(stem, part.images / f"{stem}.jpg")
    if stem not in files:
        faults.append(Fault("missing label files", f"{part.xml / stem}.xml"))
        return AnnotatedImage(path, stem)
    tree = parse_xml(files[stem])
    where = files[stem].name
    entries = tree.findall("object")
    if tree.tag != "annotation" or len(entries) > OBJECTS:
        raise InputError(f"{files[stem]}: expected <annotation> with at most {OBJECTS} <object>")
    objects = []
    for number, entry in enumerate(entries, start=1):
        place = f"{where} object {number}"
        try:
            objects.append(_object(entry, place))
        except Faulty as error:
            faults.append(Fault(error.kind, f"{place}: {error}"))
    height, width = (tree.findtext(f"size/{side}") or "" for side in ("height", "width"))
    declared = height.isdecimal() and width.isdecimal() and int(height) and int(width)
    size = (int(height), int(width)) if declared else None
    return AnnotatedImage(path, where, size=size, objects=tuple(objects))


def _object(entry: ElementTree.Element, where: str) -> Annotation:
    label = (entry.findtext("name") or "").strip()
    if not label:
        raise Faulty("it has no <name>")
    if (boxes := len(entry.findall("bndbox"))) > 1:
        raise Faulty(f"expected one <bndbox>, got {boxes}")
    words = [entry.findtext(f"bndbox/{n}") or "" for n in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = map(float, words)
    except ValueError as error:
        raise Faulty(f"expected <bndbox> with four numbers, got {shown(words)}") from error
    finite((left, top, right, bottom), f"{label} {shown(words)}")
    crowd = (entry.findtext("difficult") or "0").strip() == "1"
    return Annotation(label, (left, top, right, bottom), crowd=crowd, where=where)


def _from_zero(
    splits: dict[str, list[AnnotatedImage]],
) -> tuple[dict[str, list[AnnotatedImage]], list[str]]:
    """Turn inclusive corners that count from 1 into those of areas, unless a 0 shows that not."""
    lowest = min((min(o.box[:2]) for o in objects_of(splits)), default=1)
    if lowest < 1:
        return splits, ["a corner at 0 occurs: boxes are taken as written, not as counted from 1"]
    return {which: [_moved(image) for image in part] for which, part in splits.items()}, []


def _moved(image: AnnotatedImage) -> AnnotatedImage:
    moved = tuple(o._replace(box=_less_one(o.box)) for o in image.objects)
    return dataclasses.replace(image, objects=moved)


def _less_one(box: Box) -> Box:
    left, top, right, bottom = box
    return left - 1, top - 1, right, bottom


def _read_masks(root: Path, kind: Kind) -> DenseListing:
    """Read `SegmentationClass`, for instances with `SegmentationObject`."""
    images, masks = _by_stem(_folder(root, _IMAGES) or root), _by_stem(root / "SegmentationClass")
    regions = _by_stem(root / "SegmentationObject") if kind == "instances" else {}
    classes, notes = _names_of_masks(root, kind)
    faults: list[Fault] = []
    splits = {}
    for which, stems in (_sets(root, "Segmentation") or {"all": sorted(masks)}).items():
        splits[which] = [
            AnnotatedImage(images.get(s, root / f"{s}.jpg"), s, mask=masks[s])
            for s in stems
            if s in masks and (kind == "semantic" or s in regions)
        ]
        bare = [s for s in stems if s not in masks or (kind == "instances" and s not in regions)]
        faults += [Fault("missing masks", f"SegmentationClass or -Object: {stem}") for stem in bare]
    if kind == "semantic":
        named = ("background", *classes) if classes else None
        return DenseListing("Pascal VOC", root, splits, named, kind, None, tuple(faults), notes)
    outlined = {
        which: [_outlined(i, regions[i.where], classes or (), faults) for i in part]
        for which, part in splits.items()
    }
    return DenseListing("Pascal VOC", root, outlined, classes, kind, None, tuple(faults), notes)


def _outlined(
    image: AnnotatedImage, regions: Path, classes: tuple[str, ...], faults: list[Fault]
) -> AnnotatedImage:
    """Find each number of a mask of objects, and the class that most of its pixels have."""
    assert image.mask is not None
    try:
        numbers, values = read_mask(regions), read_mask(image.mask)
    except UnreadableImage as error:
        faults.append(Fault("unreadable masks", str(error).removeprefix("cannot read mask ")))
        return dataclasses.replace(image, mask=None)
    if numbers.shape != values.shape:
        said = f"{regions.name}: SegmentationObject and SegmentationClass differ"
        faults.append(Fault("masks of another size than their image", said))
        return dataclasses.replace(image, mask=None)
    objects = []
    for number in (int(n) for n in np.unique(numbers) if n not in {0, IGNORE}):
        rows, columns = np.nonzero(numbers == number)
        inner = values[rows, columns]
        inner = inner[(inner != 0) & (inner != IGNORE)]
        label = int(np.bincount(inner).argmax()) if len(inner) else 0
        where = f"{regions.name} object {number}"
        if not 1 <= label <= len(classes):
            said = f"{where} has class {label}, and there are {len(classes)} names"
            faults.append(Fault("classes beyond the names", said))
            continue
        box = float(columns.min()), float(rows.min()), columns.max() + 1.0, rows.max() + 1.0
        objects.append(Annotation(classes[label - 1], box, Region(regions, number), where=where))
    return dataclasses.replace(image, objects=tuple(objects), mask=None)


FORMAT = DenseFormat(_claims, read_voc, rank=20, about="Pascal VOC (Annotations/*.xml)")

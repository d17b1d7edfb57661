"""YOLO's folders: `data.yaml`, images below `images/`, a text file for each below `labels/`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ....errors import InputError, shown
from ....yaml_text import parse_yaml
from ...listing import SPLITS, role
from ...tree import children, hint, is_image, names, walk
from ..faults import Fault, Faulty, finite
from ..listing import DenseFormat, DenseListing, Kind, objects_of
from ..objects import AnnotatedImage, Annotation, Polygons
from ..sizes import measure
from ..text import CORNERS, OBJECTS, bounded, inside, named, read_names
from .mask_pairs import images_below

_YAML = {".yaml", ".yml"}
BEYOND = 1.01
"""Largest share of an image that a centre or a side may be, by rounding."""


class _Source(NamedTuple):
    root: Path
    yaml: Path | None


def _source(path: Path) -> _Source | None:
    """Find YOLO's YAML, or names of classes beside `images/` and `labels/`."""
    if path.is_file():
        return _Source(path.parent, path) if path.suffix.lower() in _YAML else None
    if not path.is_dir():
        return None
    files = [child for child in children(path) if child.suffix.lower() in _YAML]
    found = [file for file in files if file.is_file() and _has_names(file)]
    if found:
        usual = [file for file in found if file.stem.lower() in {"data", "dataset"}]
        if len(found) > 1 and len(usual) != 1:
            raise InputError(f"{path}: {found[0].name} and {found[1].name}: name one as the source")
        return _Source(path, (usual or found)[0])
    if {"images", "labels"} <= set(names(path)):
        texts = any(file.suffix == ".txt" for file in walk(path / "labels", set())[1])
        return _Source(path, None) if texts else None
    return None


def _has_names(path: Path) -> bool:
    with path.open("rb") as file:
        start = b"\n" + file.read(1 << 16)
    return b"\nnames" in start and any(b"\n" + which.encode() in start for which in SPLITS)


def read_yolo(source: Path, kind: Kind | None = None) -> DenseListing:
    """Read YOLO's folders.

    A line of a label file is a class and `x y width height` of a box's centre and sides, or the
    corners of a polygon, in shares of the image's width and height. An image without a label file
    has no objects. `path`, `train`, `val` and `test` of the YAML are below its folder; a leading
    `../`, which Roboflow writes, and a `path` of another machine are passed over where the rest
    is there.

    Args:
        source: The folder, or the YAML.
        kind: Of no effect: the files say what they hold.

    Returns:
        Instances where every object is a polygon, else boxes.

    Raises:
        InputError: The YAML is wrong, or what it names is not there.
    """
    del kind
    root, path = _source(source) or _Source(source, None)
    said = _yaml(path) if path else {"names": _beside(root), **_folders(root)}
    where = str(path or root)
    classes = named(said.get("names"), f"{where}: names")
    if (count := said.get("nc", len(classes))) != len(classes):
        raise InputError(f"{where}: nc is {shown(count)}, and there are {len(classes)} names")
    splits, notes = _splits(root, said, where)
    if path is None and not splits:
        splits = {"all": images_below(root / "images")}
    if not splits:
        raise InputError(f"{where}: expected train, val or test with a folder or a list of images")
    poses, faults = "kpt_shape" in said, list[Fault]()
    listed = {
        which: _read(images, root, classes, poses, faults) for which, images in splits.items()
    }
    notes += _without_image(root, listed)
    objects = list(objects_of(listed))
    outlined = bool(objects) and all(o.shape for o in objects)
    mixed = sum(o.shape is not None for o in objects)
    if mixed and not outlined:
        notes.append(
            f"{len(objects) - mixed} of {len(objects)} objects are boxes: all are read as boxes"
        )
    return DenseListing(
        "YOLO",
        root,
        listed,
        classes,
        "instances" if outlined else "boxes",
        faults=tuple(faults),
        notes=tuple(notes),
    )


def _without_image(root: Path, listed: dict[str, list[AnnotatedImage]]) -> list[str]:
    """Say how many label files belong to no image; names of classes may lie among them."""
    read = {root / image.where for part in listed.values() for image in part}
    beside = {file for folder in {path.parent for path in read} for file in walk(folder, set())[1]}
    left = sorted(f for f in beside - read if f.suffix == ".txt" and f.stem != "classes")
    return [f"{len(left)} label files have no image (first {left[0]})"] if left else []


def _yaml(path: Path) -> dict[str, object]:
    content = parse_yaml(bounded(path), str(path))
    if not isinstance(content, dict) or "names" not in content:
        raise InputError(f"{path}: expected YOLO's names, and train, val or test")
    return content


def _beside(root: Path) -> list[str]:
    found = read_names(root)
    if found is None:
        raise InputError(f"{root}: expected data.yaml or classes.txt beside images and labels")
    return list(found)


def _folders(root: Path) -> dict[str, str]:
    """Find the splits of a folder without YAML: `images/train` and its like."""
    there = [child.name for child in children(root / "images") if child.is_dir()]
    return {which: f"images/{name}" for name in there if (which := role(name))}


def _splits(
    root: Path, said: dict[str, Any], where: str
) -> tuple[dict[str, list[Path]], list[str]]:
    """List the images of each split; of val and test, what is named may be absent."""
    splits, notes = {}, []
    for which, known in SPLITS.items():
        for name in (name for name in known if said.get(name)):
            try:
                splits[which] = _images(root, said, name, f"{where}: {name}")
            except _Absent:
                if which == "train":
                    raise
                notes.append(f"{name}: {shown(said[name])} is not there, passed over")
    return splits, notes


class _Absent(InputError):
    """A folder or list that the YAML names is not there."""


def _images(root: Path, said: dict[str, Any], name: str, where: str) -> list[Path]:
    """List the images of one split."""
    given = said[name]
    found: list[Path] = []
    for part in given if isinstance(given, list) else [given]:
        path = _locate(root, said.get("path"), part, where)
        if path.is_dir():
            found += images_below(path)
        elif path.suffix.lower() == ".txt":
            base = _locate(root, said.get("path"), ".", where)
            lines = [line.strip() for line in bounded(path).splitlines() if line.strip()]
            listed = [
                _below(root, base, line, f"{path.name}:{n}") for n, line in enumerate(lines, 1)
            ]
            found += listed
        else:
            raise InputError(f"{where}: {shown(part)} is no folder and no .txt of images")
    return found


def _below(root: Path, base: Path, line: str, where: str) -> Path:
    """Make an image's path whole: below `path`, or as an absolute one that stays in the folder."""
    if os.path.isabs(line) and Path(os.path.normpath(line)).is_relative_to(root):
        return Path(os.path.normpath(line))
    return inside(root, base, line, where)


def _locate(root: Path, path: object, part: object, where: str) -> Path:
    """Find a folder or list below the root, as Ultralytics does, and where it is none, below it."""
    if not isinstance(part, str) or (path is not None and not isinstance(path, str)):
        raise InputError(f"{where}: expected a folder or a list, got {shown(part)}")
    written = part.replace("\\", "/")
    stripped = written
    while stripped.startswith("../"):
        stripped = stripped[3:]
    bases: list[Path] = [root / path, root] if path else [root]
    tries = [
        os.path.normpath(os.path.join(base, rest)) for base in bases for rest in (written, stripped)
    ]
    within = [Path(candidate) for candidate in tries if Path(candidate).is_relative_to(root)]
    there = [candidate for candidate in within if candidate.exists()]
    if not there:
        if not within:
            raise InputError(f"{where}: {shown(part)} leads out of {root}")
        raise _Absent(f"{where}: {shown(part)} is not there{hint(within[0])}")
    return there[0]


def _label(image: Path, root: Path) -> Path:
    """Name the label file of an image: the last `images` of its path becomes `labels`."""
    parts = list(image.relative_to(root).with_suffix(".txt").parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return root.joinpath(*parts)


def _read(
    images: Sequence[Path],
    root: Path,
    classes: tuple[str, ...],
    poses: bool,
    faults: list[Fault],
) -> list[AnnotatedImage]:
    sizes = measure(images)
    found = []
    for path in images:
        label = _label(path, root)
        where = label.relative_to(root).as_posix()
        if not is_image(path):
            raise InputError(f"{path} is listed, and is no image")
        lines = bounded(label).splitlines() if label.is_file() else []
        rows = [(f"{where}:{n}", line.split()) for n, line in enumerate(lines, 1) if line.strip()]
        if len(rows) > OBJECTS:
            raise InputError(f"{label} has {len(rows)} objects: expected at most {OBJECTS}")
        objects: list[Annotation] = []
        size = sizes[path]
        for place, row in rows:
            if size is None:  # what cannot be read is refused, whatever its labels say
                break
            try:
                objects.append(_object(row[:5] if poses else row, size, classes, place))
            except Faulty as error:
                faults.append(Fault(error.kind, f"{place}: {error}"))
        found.append(AnnotatedImage(path, where, objects=tuple(objects)))
    return found


def _object(
    row: Sequence[str], size: tuple[int, int], classes: tuple[str, ...], where: str
) -> Annotation:
    """Read one line: a class, and a box or a polygon in shares of the image."""
    try:
        values = np.array([float(word) for word in row])
    except ValueError as error:
        raise Faulty(f"expected numbers, got {shown(' '.join(row))}") from error
    if len(row) != 5 and (len(row) < 7 or len(row) % 2 == 0 or len(row) > 2 * CORNERS):
        raise Faulty(f"expected a class with 4 numbers or with 3 corners or more, got {len(row)}")
    finite(values, f"{shown(' '.join(row))}")
    number, shares = int(values[0]), values[1:]
    if number != values[0] or not 0 <= number < len(classes):
        said = f"class {row[0]}, and there are {len(classes)} names"
        raise Faulty(said, "classes beyond the names")
    if abs(shares).max() > BEYOND:
        raise Faulty(f"{shown(' '.join(row[1:]))} are no shares of the image from 0 to 1")
    height, width = size
    pixels = (shares.reshape(-1, 2) * (width, height)).astype(np.float64)
    if len(row) == 5:
        (x, y), (w, h) = pixels.tolist()
        return Annotation(
            classes[number], (x - w / 2, y - h / 2, x + w / 2, y + h / 2), where=where
        )
    shape = Polygons((pixels.reshape(-1),))
    return Annotation(classes[number], shape.box(), shape, where=where)


FORMAT = DenseFormat(_source, read_yolo, rank=40, about="YOLO folders with data.yaml")

"""COCO's JSON: `instances_train2017.json`, `annotations/train.json`, `_annotations.coco.json`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ....errors import InputError, shown
from ..coco_files import KEYS, files_of, folder_of, split_of
from ..faults import Fault, Faulty, finite
from ..listing import DenseFormat, DenseListing, Kind
from ..objects import AnnotatedImage, Annotation, Polygons
from ..runs import Runs, read_runs
from ..text import CORNERS, OBJECTS, inside, numbers, parse_json


class _File(NamedTuple):
    path: Path
    split: str
    content: dict[str, Any]


def read_coco(source: Path, kind: Kind | None = None) -> DenseListing:
    """Read COCO's JSON.

    `bbox` is x, y, width, height from the image's upper left corner. Ids of categories may have
    gaps: classes are in the order of ids. Categories that are nothing but the super-category of the
    others (Roboflow's number 0) are left out.

    Args:
        source: A folder, or one file.
        kind: Of no effect: the file says what it holds.

    Returns:
        Instances where every object has a mask, else boxes.

    Raises:
        InputError: A file is no JSON or not COCO, two files are for one split, or a path leads out
            of the folder.
    """
    del kind
    root = source if source.is_dir() else source.parent
    if source.is_file() and root.name.lower() == "annotations":
        root = root.parent
    files: dict[str, _File] = {}
    for path in files_of(source):
        which = "all" if source.is_file() else split_of(path, source)
        if which in files:
            raise InputError(f"{source}: both {files[which].path.name} and {path.name} are {which}")
        files[which] = _File(path, which, _content(path))
    odd = files.pop("all").path if "all" in files and len(files) > 1 else None
    names, notes = _classes(list(files.values()))
    notes += [f"{odd.name} is for no split, and was passed over"] if odd else []
    faults: list[Fault] = []
    splits = {
        which: _images(file, root, names, faults)
        for which, file in sorted(files.items(), key=lambda item: item[0] != "train")
    }
    found, more = _kind(splits)
    used = tuple(dict.fromkeys(names.values()))
    return DenseListing(
        "COCO", root, splits, used, found, faults=tuple(faults), notes=(*notes, *more)
    )


def _content(path: Path) -> dict[str, object]:
    content = parse_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in KEYS):
        raise InputError(
            f"{path} is not COCO: expected an object with lists of {', '.join(KEYS[:2])} and "
            f"{KEYS[2]}"
        )
    for key in KEYS:
        if not all(isinstance(entry, dict) for entry in content[key]):
            raise InputError(f"{path} is not COCO: {key} holds something else than objects")
    if not content["images"]:
        raise InputError(f"{path} lists no images")
    return content


def _classes(files: Sequence[_File]) -> tuple[dict[tuple[str, int], str], list[str]]:
    """Name the category of each id of each split; the values are in the order of classes."""
    categories = [
        (file, _identity(c.get("id"), f"{file.path.name} category"), c)
        for file in files
        for c in file.content["categories"]
    ]
    used = {
        (file.split, number)
        for file in files
        for annotation in file.content["annotations"]
        if isinstance(number := annotation.get("category_id"), int | str)
    }
    over = {str(c.get("supercategory")) for _, _, c in categories}
    names: dict[tuple[str, int], str] = {}
    idle: dict[str, None] = {}
    for file, number, category in sorted(categories, key=lambda c: (c[0].split != "train", c[1])):
        name = category.get("name")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{file.path}: category {number} has no name but {shown(name)}")
        super_only = category.get("supercategory") in (None, "none") and name in over
        if super_only and not any((f.split, number) in used for f in files):
            idle[name] = None
            continue
        if (file.split, number) in names or name in _of(names, file.split):
            raise InputError(f"{file.path}: category {number} ({shown(name)}) is there twice")
        names[file.split, number] = name
    if not names:
        raise InputError(f"{files[0].path} names no categories")
    return names, [f"category {name!r} is only over the others, and left out" for name in idle]


def _of(names: Mapping[tuple[str, int], str], split: str) -> list[str]:
    return [name for (which, _), name in names.items() if which == split]


def _identity(value: object, where: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}: expected a whole number as id, got {shown(value)}")
    return value


def _image_id(value: object, where: str) -> int | str:
    """Read the id of an image, which may be a name."""
    named = isinstance(value, str) and value and not value.isdecimal()
    return str(value) if named else _identity(value, where)


def _images(
    file: _File, root: Path, names: Mapping[tuple[str, int], str], faults: list[Fault]
) -> list[AnnotatedImage]:
    """Read the images of one file, each with its objects."""
    where, content = file.path.name, file.content
    images = [
        (_image_id(entry.get("id"), f"{where} image"), _name(entry), _size(entry))
        for entry in content["images"]
    ]
    known = {number for number, _, _ in images}
    if len(known) < len(images):
        raise InputError(f"{file.path}: two images have one id")
    objects = defaultdict(list)
    for position, entry in enumerate(content["annotations"], start=1):
        place = f"{where} annotation {entry.get('id', position)}"
        try:
            number = _image_id(entry.get("image_id"), place)
            if number not in known:
                raise Faulty(f"its image {number} is not among the images")
            objects[number].append(_object(entry, file.split, names, place))
        except (Faulty, InputError) as error:
            kind = getattr(error, "kind", "objects that are not understood")
            faults.append(Fault(kind, f"{place}: {str(error).removeprefix(place + ': ')}"))
    folder = folder_of(file.path, file.split, root, images[0][1])
    return [
        AnnotatedImage(
            path=inside(root, folder, name, f"{where} image {number}"),
            where=f"{where} image {number}",
            number=number if isinstance(number, int) else -1,
            size=size,
            objects=_bounded(objects[number], f"{where} image {number}"),
        )
        for number, name, size in images
    ]


def _bounded(objects: list[Annotation], where: str) -> tuple[Annotation, ...]:
    if len(objects) > OBJECTS:
        raise InputError(f"{where} has {len(objects)} objects: expected at most {OBJECTS}")
    return tuple(objects)


def _name(entry: Mapping[str, object]) -> object:
    """Name an image's file; LVIS gives its address only, which ends in split and file."""
    name, address = entry.get("file_name"), entry.get("coco_url")
    return "/".join(address.split("/")[-2:]) if not name and isinstance(address, str) else name


def _size(entry: Mapping[str, object]) -> tuple[int, int] | None:
    size = numbers((entry.get("height"), entry.get("width")), 2)
    return (int(size[0]), int(size[1])) if size and np.isfinite(size).all() else None


def _object(
    entry: Mapping[str, object], split: str, names: Mapping[tuple[str, int], str], place: str
) -> Annotation:
    number = _identity(entry.get("category_id"), place)
    if (split, number) not in names:
        raise Faulty(f"its category {number} is not among the categories")
    shape, given = _shape(entry.get("segmentation")), entry.get("bbox")
    if given is None and shape is not None:
        box = shape.box()
    elif (listed := numbers(given, 4)) is None:
        raise Faulty(f"expected bbox as four numbers, got {shown(given)}")
    else:
        left, top, width, height = listed
        box = (left, top, left + width, top + height)
    finite(box, f"bbox {shown(given)}")
    if (crowd := entry.get("iscrowd") or 0) not in (0, 1):
        raise Faulty(f"expected iscrowd 0 or 1, got {shown(crowd)}")
    return Annotation(names[split, number], box, shape, bool(crowd), place)


def _shape(given: object) -> Polygons | Runs | None:
    """Read `segmentation`: polygons, run lengths, or nothing."""
    if not given:
        return None
    if isinstance(given, dict):
        return read_runs(given)
    rings = [numbers(ring) for ring in given] if isinstance(given, list) else []
    if not rings or not all(ring and len(ring) % 2 == 0 for ring in rings):
        raise Faulty("expected segmentation as polygons x1, y1, x2, y2, ... or run lengths")
    kept = tuple(np.asarray(ring) for ring in rings if ring and len(ring) >= 6)
    if sum(map(len, kept)) > 2 * CORNERS:
        raise Faulty(f"segmentation of more than {CORNERS} corners")
    for ring in kept:
        finite(ring, "segmentation")
    return Polygons(kept) if kept else None


def _kind(splits: Mapping[str, Sequence[AnnotatedImage]]) -> tuple[Kind, list[str]]:
    """Tell whether every object has a mask."""
    objects = [o for images in splits.values() for image in images for o in image.objects]
    bare = [o for o in objects if o.shape is None]
    if objects and not bare:
        return "instances", []
    if len(bare) == len(objects):
        return "boxes", []
    return "boxes", [
        f"{len(bare)} of {len(objects)} objects have no mask (first {bare[0].where}): "
        "read as boxes only"
    ]


FORMAT = DenseFormat(files_of, read_coco, rank=30, about="COCO JSON")

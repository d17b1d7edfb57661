"""LabelMe's JSON: a file of shapes beside each image."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import InputError, shown
from ...listing import role
from ...tree import children, is_image
from ..faults import Fault, Faulty, finite
from ..listing import DenseFormat, DenseListing, Kind, objects_of, unknown_labels
from ..objects import AnnotatedImage, Annotation, Polygons
from ..text import CORNERS, OBJECTS, bounded, inside, numbers, parse_json, read_names, sniff

MOST = 256 << 20
"""Bytes of one file, which may hold its image as text; that is never decoded."""
CORNERS_OF_CIRCLE = 64
SHAPES = ("polygon", "rectangle", "circle")
"""Shapes that enclose something."""
OPEN = ("point", "points", "line", "linestrip")
"""Shapes that enclose nothing, and are passed over."""


def _files(folder: Path) -> dict[str, list[Path]]:
    """Find LabelMe's files: in the folder, or in one for each split."""
    if not folder.is_dir():
        return {}
    if _labelled(here := _jsons(folder)):
        return {"all": here}
    below = {w: _jsons(child) for child in children(folder) if (w := role(child.name))}
    # One part that is LabelMe's makes all of them so: a broken one is refused, not passed over.
    return (
        {w: part for w, part in below.items() if part}
        if any(map(_labelled, below.values()))
        else {}
    )


def _jsons(folder: Path) -> list[Path]:
    there = children(folder) if folder.is_dir() else []
    return [f for f in there if f.suffix.lower() == ".json" and f.name != "classes.json"]


def _labelled(files: list[Path]) -> bool:
    return any(sniff(file, ("shapes",)) for file in files[:20])


def read_labelme(root: Path, kind: Kind | None = None) -> DenseListing:
    """Read LabelMe's JSON.

    Polygons, rectangles (two corners) and circles (centre and a point on the edge, read as a
    polygon of 64 corners) count, also as masks; points and lines do not. Shapes of one label and
    one `group_id` are one object. Images without a file are not labelled, and passed over.

    Args:
        root: The folder of images and their files, or one with such a folder for each split.
        kind: Of no effect: every shape that counts is an outline.

    Returns:
        Instances.

    Raises:
        InputError: A file is not LabelMe's JSON, or its image lies outside the folder.
    """
    del kind
    faults: list[Fault] = []
    passed: list[str] = []
    files = _files(root)
    splits = {
        which: [_image(path, root, faults, passed) for path in part]
        for which, part in files.items()
    }
    found = {o.label for o in objects_of(splits)}
    labelled = {image.path for part in splits.values() for image in part}
    folders = {path.parent for part in files.values() for path in part}
    there = [p for folder in folders for p in children(folder) if is_image(p)]
    bare = sum(path not in labelled for path in there)
    notes = [f"{len(passed)} points and lines passed over (first {passed[0]})"] if passed else []
    notes += [f"{bare} images have no JSON and were passed over"] if bare else []
    classes = _names(root) or tuple(sorted(found))
    faults += unknown_labels(splits, classes)
    return DenseListing(
        "LabelMe", root, splits, classes, "instances", None, tuple(faults), tuple(notes)
    )


def _names(root: Path) -> tuple[str, ...] | None:
    path = root / "labels.txt"
    if not path.is_file():
        return read_names(root)
    lines = [line.strip() for line in bounded(path).splitlines()]
    return tuple(dict.fromkeys(n for n in lines if n and n not in {"__ignore__", "_background_"}))


def _image(path: Path, root: Path, faults: list[Fault], passed: list[str]) -> AnnotatedImage:
    content = parse_json(path, MOST)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or len(shapes) > OBJECTS:
        raise InputError(f"{path} is not LabelMe's: expected at most {OBJECTS} shapes in a list")
    parts: dict[tuple[Any, ...], tuple[str, list[np.ndarray], str]] = {}
    for number, shape in enumerate(shapes, start=1):
        place = f"{path.name} shape {number}"
        try:
            if not isinstance(shape, dict) or not isinstance(label := shape.get("label"), str):
                raise Faulty("expected an object with a label")
            if (form := shape.get("shape_type") or "polygon") in OPEN:
                passed.append(f"{place}: {shown(form)}")
                continue
            if form not in SHAPES:
                raise Faulty(f"expected a shape_type of {', '.join(SHAPES)}, got {shown(form)}")
            ring, group = _ring(shape, form), shape.get("group_id")
            known = isinstance(group, int | str)
            parts.setdefault((label, group) if known else (number,), (label, [], place))[1].append(
                ring
            )
        except Faulty as error:
            faults.append(Fault(error.kind, f"{place}: {error}"))
    outlines = [(label, Polygons(tuple(rings)), place) for label, rings, place in parts.values()]
    objects = tuple(
        Annotation(label, shape.box(), shape, where=place) for label, shape, place in outlines
    )
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return AnnotatedImage(_beside(path, root, content), path.name, size=size, objects=objects)


def _ring(shape: dict[str, object], form: str) -> np.ndarray:
    """Write a shape as the corners of a polygon."""
    given = shape.get("points")
    points = [numbers(point, 2) for point in given] if isinstance(given, list) else []
    fewest = 3 if form == "polygon" else 2
    if not fewest <= len(points) <= CORNERS or not all(points):
        raise Faulty(f"expected a {form} with {fewest} points or more, got {shown(given)}")
    corners = np.asarray(points, dtype=np.float64)
    finite(corners, f"a {form} with {shown(given)}")
    if form == "rectangle":
        (left, top), (right, bottom) = corners.min(0), corners.max(0)
        return np.array([left, top, right, top, right, bottom, left, bottom])
    if form == "circle":
        turns = np.arange(CORNERS_OF_CIRCLE) * (2 * math.pi / CORNERS_OF_CIRCLE)
        around = np.stack([np.cos(turns), np.sin(turns)], axis=1)
        corners = corners[0] + float(np.hypot(*(corners[1] - corners[0]))) * around
    return corners.reshape(-1)


def _beside(path: Path, root: Path, content: dict[str, Any]) -> Path:
    """Find the image: where `imagePath` says, or under that name or the file's own beside it."""
    name = content.get("imagePath")
    if isinstance(name, str) and name.strip():
        last = name.replace("\\", "/").rpartition("/")[2]
        tries = [os.path.normpath(path.parent / name.replace("\\", "/")), str(path.parent / last)]
        for found in (Path(text) for text in tries if "\0" not in text):
            if found.is_relative_to(root) and found.is_file():
                return found
    own = [child for child in children(path.parent) if child.stem == path.stem and is_image(child)]
    return own[0] if own else inside(root, path.parent, name, path.name)


FORMAT = DenseFormat(_files, read_labelme, rank=50, about="LabelMe JSON beside images")

"""Data sets of the Hugging Face hub, through `datasets`, an optional extra."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from ...errors import InputError
from ...extras import extra
from ..listing import SPLITS, Listing, Named, role
from ..store import Picture, keep
from .lists import read_lists

PREFIX = "hf:"
LABELS = ("label", "labels", "class")


def read_hub(source: str) -> Listing:
    """Read `hf:org/name`, or a data set saved by `datasets` at `hf:/a/path`.

    The image column is the one of type Image; the label column the one of type ClassLabel, or one
    named label, labels or class. Where there are several, name it: `hf:org/name:fine_label`. The
    encoded images are written to files as they are.

    Args:
        source: The source.

    Returns:
        The entries of train, val and test.

    Raises:
        InputError: `datasets` cannot load the source, or the columns are unclear.
    """
    name, _, label = source.removeprefix(PREFIX).partition(":")
    if not name:
        raise InputError(f"{source!r} names no data set: give {PREFIX}org/name")
    library = extra("datasets", "hub")
    parts = _load(library, name, source)
    roles = {which: part for key, part in parts.items() if (which := role(key))}
    ignored = sorted(key for key in parts if role(key) is None)
    if not roles:
        raise InputError(f"{source} has no split train, only {', '.join(parts)}")
    features = next(iter(roles.values())).features
    image = _column(source, features, [c for c in features if _is(features, c, "Image")], "image")
    found = [c for c in features if _is(features, c, "ClassLabel")]
    found = found or [c for c in LABELS if c in features]
    label = label if label in features else _column(source, features, found, "label", label)
    digest = hashlib.sha256(f"{image}\0{label}".encode())
    for which in SPLITS:
        digest.update(f"{which}\0{getattr(roles.get(which), '_fingerprint', '')}".encode())
    folder = f"{Path(name).name}-{digest.hexdigest()[:16]}"
    values = {which: set(part.unique(label)) for which, part in roles.items()}
    ignored += [which for which, found in values.items() if found == {-1}]  # not labelled
    classes = _classes(features[label], values)
    pictures = {
        which: _pictures(
            part.cast_column(image, library.Image(decode=False)), image, label, classes
        )
        for which, part in roles.items()
        if which not in ignored
    }
    kept = keep(folder, pictures, classes)
    notes = [f"images of {source} written to {kept}"]
    notes += [f"ignored {', '.join(ignored)}"] if ignored else []
    return dataclasses.replace(read_lists(kept), format=f"hub ({source})", notes=tuple(notes))


def _load(library: ModuleType, name: str, source: str) -> Mapping[str, Any]:
    saved = any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json"))
    try:
        loaded = library.load_from_disk(name) if saved else library.load_dataset(name)
    except Exception as error:  # whatever the network, the hub or a broken file leads to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"cannot load {source}: {reason}") from error
    return loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


def _is(features: Mapping[str, object], column: str, kind: str) -> bool:
    return type(features[column]).__name__ == kind


def _column(
    source: str, features: Mapping[str, object], found: list[str], kind: str, given: str = ""
) -> str:
    if len(found) == 1 and not given:
        return found[0]
    raise InputError(
        f"{source}: {f'no column {given!r}' if given else f'{len(found)} {kind} columns'}; "
        f"its columns are {', '.join(features)}"
        + (
            f": name the label, such as {PREFIX}NAME:{found[0]}"
            if kind == "label" and found
            else ""
        )
    )


def _classes(feature: object, values: Mapping[str, set[object]]) -> list[str] | None:
    names = getattr(feature, "names", None)
    found = set().union(*values.values())
    return names or (sorted(found) if all(isinstance(v, str) for v in found) else None)


def _pictures(part: Any, image: str, label: str, classes: list[str] | None) -> Iterator[Picture]:
    for row in part.select_columns([image, label]):
        data = row[image]["bytes"] or Path(row[image]["path"]).read_bytes()
        value = row[label]
        number = classes.index(value) if classes and isinstance(value, str) else value
        yield Picture(data, _suffix(data), str(number))


def _suffix(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return f".{(picture.format or 'img').lower()}"
    except Exception:  # it is refused by name at the door, or skipped, like any broken image
        return ".img"


FORMAT = Named(PREFIX, read_hub)

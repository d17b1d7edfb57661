"""Files of labels that may be anybody's: bounded in size and depth, with paths that stay inside."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from ...errors import InputError, shown
from ..tree import names, read_text

JSON_BYTES = 2 << 30
"""Largest JSON that is read: COCO's own `instances_train2017.json` has 470 MB."""
TEXT_BYTES = 16 << 20
"""Largest text of one image's labels, YAML or list of images."""
DEPTH = 20
"""Most levels of elements in XML."""
OBJECTS = 20_000
"""Most objects in one image."""
CORNERS = 1_000_000
"""Most corners of one polygon."""


def bounded(path: Path, most: int = TEXT_BYTES) -> str:
    """Read a text file.

    Args:
        path: The file.
        most: Bytes that it may have.

    Returns:
        Its text.

    Raises:
        InputError: It cannot be read, is larger, or is not UTF-8.
    """
    if path.is_file() and path.stat().st_size > most:
        raise InputError(f"{path} is larger than {most >> 20} MiB")
    return read_text(path)


def parse_json(path: Path, most: int = JSON_BYTES) -> Any:
    """Read JSON; NaN and infinity are let through, for each box is looked at by itself.

    Args:
        path: The file.
        most: Bytes that it may have.

    Returns:
        Its content.

    Raises:
        InputError: It is no JSON, or is too deep or too large.
    """
    try:
        return json.loads(bounded(path, most))
    except RecursionError as error:
        raise InputError(f"{path} is no JSON of labels: it is nested too deep") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {str(error)[:200]}") from error


def sniff(path: Path, keys: Iterable[str]) -> set[str]:
    """Tell by its first and last 64 KiB which keys of a JSON file hold lists.

    Args:
        path: The file.
        keys: What is looked for.

    Returns:
        Those that stand there; none of what is no JSON file.
    """
    if path.suffix.lower() != ".json" or not path.is_file():
        return set()
    try:
        with path.open("rb") as file:
            seen = file.read(1 << 16)
            file.seek(max(file.tell(), path.stat().st_size - (1 << 16)))
            seen += file.read()
    except OSError:
        return set()
    return {key for key in keys if re.search(rf'"{re.escape(key)}"\s*:\s*\['.encode(), seen)}


def parse_xml(path: Path) -> ElementTree.Element:
    """Read XML without a document type: no entity is declared, expanded or fetched.

    Args:
        path: The file.

    Returns:
        Its root element.

    Raises:
        InputError: It is no XML, declares a document type or entities, or is too deep or large.
    """
    if path.stat().st_size > TEXT_BYTES:
        raise InputError(f"{path} is larger than {TEXT_BYTES >> 20} MiB")
    tree, depth = ElementTree.TreeBuilder(), 0

    def opened(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEPTH:
            raise InputError(f"{path} is nested more than {DEPTH} levels deep")
        tree.start(tag, attributes)

    def closed(tag: str) -> None:
        nonlocal depth
        depth -= 1
        tree.end(tag)

    def declared(*_: object) -> None:
        raise InputError(f"{path} declares a document type, which no file of boxes needs")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = opened, closed
    parser.CharacterDataHandler = tree.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = declared
    try:
        parser.Parse(path.read_bytes(), True)
    except InputError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise InputError(f"{path} is no XML: {error}") from error
    return tree.close()


def inside(root: Path, folder: Path, name: object, where: str) -> Path:
    """Make a path that a file names whole, unless it leads out of the data's folder.

    Args:
        root: The data's folder.
        folder: What the path is relative to: the root or a folder below it.
        name: The path as written, with slashes or backslashes.
        where: The place that names it, for the message.

    Returns:
        The path.

    Raises:
        InputError: It is empty, no text, absolute, or leads out of the root.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise InputError(f"{where}: expected the path of an image, got {shown(name)}")
    written = name.strip().replace("\\", "/")
    path = os.path.normpath(os.path.join(folder, written))
    absolute = os.path.isabs(written) or PureWindowsPath(written).is_absolute()
    if absolute or not Path(path).is_relative_to(root):
        raise InputError(f"{where}: {shown(name)} leads out of {root}")
    return Path(path)


def numbers(values: object, count: int | None = None) -> list[float] | None:
    """Read numbers, finite or not.

    Args:
        values: What a file holds where numbers are expected.
        count: How many; any number by default.

    Returns:
        The numbers, or None if it is something else.
    """
    if not isinstance(values, list | tuple) or (count is not None and len(values) != count):
        return None
    if not set(map(type, values)) <= {int, float}:
        return None
    try:
        return list(map(float, values))
    except OverflowError:
        return [math.inf] * len(values)


def read_names(root: Path) -> tuple[str, ...] | None:
    """Read the names of classes that lie beside the data.

    Args:
        root: The data's folder: `classes.txt` has one a line; `classes.json` is a list, or an
            object from numbers to names.

    Returns:
        The names in order; None if there is no such file.

    Raises:
        InputError: A name is empty or appears twice, or the file holds something else.
    """
    here = [name for name in ("classes.txt", "classes.json") if name in names(root)]
    if not here:
        return None
    path = root / here[0]
    if path.suffix == ".txt":
        return named([line.strip() for line in bounded(path).rstrip().splitlines()], str(path))
    return named(parse_json(path, TEXT_BYTES), str(path))


def named(given: object, where: str) -> tuple[str, ...]:
    """Read names as a list, or as an object from numbers 0, 1, ... to names.

    Args:
        given: The list or object.
        where: The place, for the message.

    Returns:
        The names in order.

    Raises:
        InputError: It is neither, numbers are left out, or a name is empty or appears twice.
    """
    if isinstance(given, dict):
        try:
            by_number = {int(number): name for number, name in given.items()}
        except (ValueError, TypeError) as error:
            raise InputError(f"{where}: expected numbers from 0 up as keys of names") from error
        if sorted(by_number) != list(range(len(given))):
            raise InputError(f"{where}: expected the numbers 0 to {len(given) - 1} as keys")
        given = [by_number[number] for number in range(len(given))]
    if not isinstance(given, list) or not given:
        raise InputError(f"{where}: expected names of classes, got {shown(given)}")
    seen: set[str] = set()
    for name in given:
        if isinstance(name, bool):
            raise InputError(f"{where}: {name} is no name: put yes, no, on and off in quotes")
        name = str(name) if isinstance(name, int | float) else name
        if not isinstance(name, str) or not name.strip() or name in seen:
            raise InputError(f"{where}: expected a new class name, got {shown(name)}")
        seen.add(name)
    return tuple(str(name) for name in given)

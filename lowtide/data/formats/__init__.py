"""Where data comes from: one format, one file, found by walking this folder.

A file says in its `FORMAT` how a source is recognised and how it is read. The sources it can be
are a path (`Format`) or a name (`Named`).
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path

from ...errors import InputError
from ...paths import located
from ..listing import LAST, Format, Listing, Named
from ..tree import children, hint

_FILES = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
_FOUND = [found for file in _FILES if (found := getattr(file, "FORMAT", None))]

FORMATS: list[Format] = sorted(
    (found for found in _FOUND if isinstance(found, Format)), key=lambda found: found.rank
)
"""The first that claims a path reads it; of rank `LAST` is what any folder may be."""

NAMED: list[Named] = [found for found in _FOUND if isinstance(found, Named)]
"""Formats of sources that are no paths."""


def named(source: Path | str) -> Named | None:
    """Tell whether a source is a name and no path.

    Args:
        source: What a user gave.

    Returns:
        The format of such names, or None.
    """
    return next((found for found in NAMED if str(source).startswith(found.prefix)), None)


def find(source: Path | str, task: str = "classify") -> Listing:
    """Read what a source says, without opening an image.

    Args:
        source: A folder, a file, or a name such as `hf:org/name`.
        task: What is learnt of an image; of all but `classify` the entries have values for labels.

    Returns:
        What it lists.

    Raises:
        InputError: It does not exist, is in no known format, or is wrong in its format.
    """
    if name := named(source):
        if task != "classify":
            raise InputError(f"{source} holds one class per image; {_wanted(task)}")
        return name.read(str(source))
    path = Path(os.path.abspath(located(source)))
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist{hint(path)}")
    claimed = next((found for found in FORMATS if found.claims(path)), None)
    if claimed is None:
        *others, last = ["a folder", *(found.file for found in FORMATS if found.file)]
        raise InputError(f"{path} is a file: expected {', '.join(others)} or {last}")
    if claimed.rank == LAST:
        _refuse_outer(path)
    if task == "classify":
        return claimed.read(path)
    if claimed.rows is None:
        raise InputError(f"{path} holds one class per image; {_wanted(task)}")
    return claimed.rows(path)


def _wanted(task: str) -> str:
    able = " or ".join(found.file for found in FORMATS if found.rows is not None)
    return f"task {task} learns from {able}"


def _refuse_outer(folder: Path) -> None:
    """Name what lies in a folder and is more plainly a data set than the folder is."""
    for child in sorted(children(folder), key=Path.is_file):
        if any(found.nested(child) for found in FORMATS):
            raise InputError(f"{folder} holds no class folders; did you mean {child}?")

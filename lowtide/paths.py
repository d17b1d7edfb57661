"""Paths as users write them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError, shown

LARGEST = 64 << 20
"""Bytes of the largest text file that is read."""
PARTIAL = 16
"""Letters that the name of a file has more while it is written."""


def path_of(name: str, given: object) -> Path:
    """Take a path that a caller gives.

    Args:
        name: Of the option, for the message.
        given: Text or a path.

    Returns:
        The path.

    Raises:
        InputError: It is neither.
    """
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"{name} must be a path, not {shown(given)}")
    return Path(given)


def located(path: Path | str) -> Path:
    """Replace `$NAME` by the environment variable and `~` by the home folder.

    A run's record keeps the path as it was given, so that it can be repeated on another machine.

    Args:
        path: As it was given.

    Returns:
        The path to open.

    Raises:
        InputError: A variable is not set.
    """
    found = os.path.expandvars(os.path.expanduser(path_of("a file", path)))
    if not os.path.exists(found) and (unset := re.search(r"\$\{?\w+\}?", found)):
        raise InputError(f"{path}: the environment variable {unset[0]} is not set")
    return Path(found)


def read_text(path: Path) -> str:
    """Read a text file.

    Args:
        path: The file, in UTF-8.

    Returns:
        Its content.

    Raises:
        InputError: It cannot be read, is no text, or is larger than any that lowtide writes.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than {LARGEST >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is damaged: it is no text in UTF-8, at byte {e.start}") from e
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}") from e


def read_json(path: Path) -> Any:
    """Read a JSON file that may be anybody's.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        InputError: It is no JSON, holds NaN or infinity, a key twice, or is too deep.
    """
    try:
        return json.loads(read_text(path), parse_constant=_no_number, object_pairs_hook=_mapping)
    except (json.JSONDecodeError, RecursionError) as e:
        raise InputError(f"{path} is no JSON: {str(e)[:200]}") from e
    except InputError:
        raise
    except ValueError as e:  # ours, or a number of thousands of digits
        reason = str(e) if isinstance(e, _Odd) else "a number is too long"
        raise InputError(f"{path} is damaged: {reason}") from e


class _Odd(ValueError):
    """JSON that Python reads and nobody should write."""


def _no_number(word: str) -> NoReturn:
    raise _Odd(f"it holds {word}, which is no number")


def _mapping(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _Odd(f"it holds {shown(key)} twice")
        found[key] = value
    return found


def refuse_unwritable(path: Path | str, *, folder: bool = False) -> None:
    """Refuse a place that cannot be written to, before the work whose result it is to hold.

    Args:
        path: What will be written; what stands there already stays as it is.
        folder: Whether it is a folder and not a file.

    Raises:
        InputError: It cannot be made, with the reason.
    """
    path = Path(path)
    if "\0" in str(path):
        raise InputError(f"{shown(str(path))} holds a NUL character")
    try:
        if path.is_dir() and not folder:
            raise InputError(f"{path} is a folder: give the name of a file")
        if folder and path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file: give a folder")
        place = path if folder else path.parent
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise InputError(f"{path} cannot be made: {place} is a file, no folder")
        most = os.pathconf(place, "PC_NAME_MAX") - PARTIAL
        if long := [part for part in path.parts if len(os.fsencode(part)) > most]:
            raise InputError(f"{shown(long[0])} is too long for the name of a file")
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as e:
        raise InputError(f"{path} cannot be written: {e.strerror or e}") from e


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write a file so that a crash leaves the old one or the new one, and a failure nothing.

    Args:
        path: Where to.

    Yields:
        The place to write to, which is put in the file's place once it is written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as f:
            os.fsync(f.fileno())
        partial.replace(path)
    except BaseException as e:
        partial.unlink(missing_ok=True)
        if isinstance(e, OSError):
            e.filename = str(path)  # what fails in writing names no file
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old one or the new one.

    Args:
        path: Where to.
        text: Its content.
    """
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")

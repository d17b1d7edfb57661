"""Images that come in archives are written out once as files; all else then reads files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError


class Picture(NamedTuple):
    """An encoded image, the suffix of its encoding, and its class as a list would write it."""

    data: bytes
    suffix: str
    label: str


def store_folder() -> Path:
    """Find where images are written to.

    Returns:
        `$LOWTIDE_CACHE`, by default `~/.cache/lowtide`.

    Raises:
        InputError: Neither is known.
    """
    given = os.environ.get("LOWTIDE_CACHE")
    try:
        return Path(given) if given else Path.home() / ".cache" / "lowtide"
    except RuntimeError as error:
        raise InputError(
            "this user has no home folder to write images to; set LOWTIDE_CACHE to a folder"
        ) from error


def keep(name: str, splits: Mapping[str, Iterable[Picture]], classes: Sequence[str] | None) -> Path:
    """Write images and lists of them, or find them written.

    Args:
        name: Names the folder; the same content has the same name, other content another.
        splits: The images of each role. Not touched if the folder is there.
        classes: Class names, in the order of integer labels; each becomes one line.

    Returns:
        A folder with `classes.txt`, one list per role, and `images/<role>/`.

    Raises:
        InputError: The folder cannot be written.
    """
    folder = store_folder() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise InputError(
            f"cannot write images to {folder}: {error.strerror}; set LOWTIDE_CACHE to a folder "
            "that can be written"
        ) from error
    try:
        _write(work / "set", splits, classes)
        # Whole or not at all: a run that dies, or a second one beside it, leaves no half folder.
        (work / "set").rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise InputError(f"cannot write images to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _write(
    folder: Path, splits: Mapping[str, Iterable[Picture]], classes: Sequence[str] | None
) -> None:
    folder.mkdir()
    if classes is not None:
        lines = "".join(f"{' '.join(name.split())}\n" for name in classes)
        (folder / "classes.txt").write_text(lines, encoding="utf-8")
    for which, pictures in splits.items():
        (folder / "images" / which).mkdir(parents=True)
        with (folder / f"{which}.txt").open("w", encoding="utf-8") as file:
            for number, picture in enumerate(pictures):
                path = f"images/{which}/{number:06}{picture.suffix}"
                (folder / path).write_bytes(picture.data)
                file.write(f"{path} {picture.label}\n")

"""List folders of images, without the files that systems leave in them."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from ..errors import InputError
from .images import suffixes

_LITTER = frozenset({
    *("__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "@__thumb", "#snapshot"),
    *("$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__", "zbthumbnail.info"),
})


def is_image(path: Path) -> bool:
    """Tell by its suffix whether a file claims to be an image.

    Args:
        path: Any path.

    Returns:
        Whether the suffix is one of `suffixes`.
    """
    return path.suffix.lower() in suffixes()


def is_litter(name: str) -> bool:
    """Tell whether a file or folder was left by a program, and not put there by a person.

    Args:
        name: Of a file or a folder.

    Returns:
        Whether it is hidden, or is one that an archiver, a file server, a viewer or an operating
        system makes by itself: `__MACOSX`, Synology's `@eaDir` with its thumbnails, `Thumbs.db`.
    """
    return name.startswith(".") or name.lower() in _LITTER


def names(folder: Path) -> list[str]:
    """List a folder in a fixed order, without litter.

    Args:
        folder: An existing folder.

    Returns:
        The names of its visible children, sorted.

    Raises:
        InputError: The folder cannot be listed.
    """
    try:
        found = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}") from error
    return [name for name in found if not is_litter(name)]


def children(folder: Path) -> list[Path]:
    """List a folder as `names` does.

    Args:
        folder: An existing folder.

    Returns:
        Its visible children, sorted by name.
    """
    return [folder / name for name in names(folder)]


def walk(folder: Path, entered: set[str]) -> tuple[list[Path], list[Path]]:
    """Find the images below a folder, through links too, in no folder twice.

    Args:
        folder: An existing folder.
        entered: Real paths of the folders that were entered; those entered here are added.

    Returns:
        The images, and what else is there, both in a fixed order.
    """
    images: list[Path] = []
    others: list[Path] = []
    for parent, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:  # a link to where it has been, or to a folder above
            subfolders.clear()
            others.append(Path(parent))
            continue
        entered.add(real)
        subfolders[:] = sorted(name for name in subfolders if not is_litter(name))
        for name in sorted(files):
            if not is_litter(name):
                path = Path(parent, name)
                (images if is_image(path) else others).append(path)
    return images, others


def hint(path: Path) -> str:
    """Suggest existing paths near one that does not exist.

    Args:
        path: A path that does not exist.

    Returns:
        `; did you mean ...?`, or nothing if no name is near.
    """
    if os.path.islink(path):
        return f"; it is a link to {os.readlink(path)}, which is not there"
    if os.path.lexists(path):
        return "; what has that name is no file"
    missing = path
    while not os.path.isdir(missing.parent):
        missing = missing.parent
    there = [child.name for child in missing.parent.iterdir()]
    same_stem = [name for name in there if Path(name).stem == missing.name]
    near = same_stem or difflib.get_close_matches(missing.name, there, n=1, cutoff=0.6)
    if not near:
        return ""
    whole = missing.parent / near[0] / path.relative_to(missing)
    return f"; did you mean {whole if whole.exists() else missing.parent / near[0]}?"


def read_text(path: Path) -> str:
    """Read a small text file a person wrote, with or without a byte-order mark.

    Args:
        path: The file.

    Returns:
        Its text.

    Raises:
        InputError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"cannot read {path}: {reason}") from error

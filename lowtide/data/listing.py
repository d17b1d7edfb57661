"""What a source says, before any image is opened: which file, which class, said where."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .images import suffixes
from .tasks import Task, differences

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The three roles and the names people give them."""

_LITTER = frozenset({
    *("__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "@__thumb", "#snapshot"),
    *("$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__", "zbthumbnail.info"),
})

_COUNT = re.compile(r"0|[1-9][0-9]{0,17}")


class Entry(NamedTuple):
    """One image and its class as written, with the place that says so (`train.txt:12`)."""

    path: Path
    label: str
    where: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """Everything one source names.

    Attributes:
        format: The kind of source, for the run record.
        root: The folder that paths are relative to.
        splits: Entries of each declared role; the single key `all` if the source declares none.
            A role that is absent may be split off another; one that is there and empty stays empty.
        classes: Class names in the order of a `classes.txt`, if there is one.
        notes: What a reader of the run record should know.
        task: The published task it claims to be, if any.
    """

    format: str
    root: Path
    splits: dict[str, list[Entry]]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    task: Task | None = None

    def differences(self) -> tuple[str, ...]:
        """Compare with what was published.

        Returns:
            One sentence per difference; none if it claims to be no known task.
        """
        if self.task is None:
            return ()
        sizes = {which: len(entries) for which, entries in self.splits.items()}
        classes = len({entry.label for entry in self.splits.get("train", ())})
        return differences(self.task, sizes, classes)


def role(name: str) -> str | None:
    """Translate a name such as `valid` into its role.

    Args:
        name: A folder's name, or a value of a CSV's split column.

    Returns:
        `train`, `val`, `test`, or None if it is no name for a role.
    """
    return next((key for key, known in SPLITS.items() if name.strip().lower() in known), None)


def is_image(path: Path) -> bool:
    """Tell by its suffix whether a file claims to be an image.

    Args:
        path: Any path.

    Returns:
        Whether the suffix is one of `suffixes`.
    """
    return path.suffix.lower() in suffixes()


def is_litter(name: str) -> bool:
    """Tell what programs leave in a folder of images from what a person put there.

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


def hint(path: Path) -> str:
    """Suggest what a path that does not exist may have meant.

    Args:
        path: A path that does not exist.

    Returns:
        `; did you mean ...?`, or nothing if no name is near.
    """
    if os.path.islink(path):
        return f"; it is a link to {os.readlink(path)}, which is not there"
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


def place(entries: Sequence[Entry], roots: Sequence[Path]) -> list[Entry]:
    """Make the paths of a list whole, by looking where its first image lies.

    Args:
        entries: Entries with paths as written.
        roots: Folders that they may be relative to, most usual first.

    Returns:
        The entries below the first folder that has the first image, or else below `roots[0]`.
    """
    first = entries[0].path
    root = next((root for root in roots if os.path.isfile(root / first)), roots[0])
    return [entry._replace(path=root / entry.path) for entry in entries]


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


def read_classes(folder: Path) -> tuple[str, ...] | None:
    """Read `classes.txt`: one class name per line, in the order of the integer labels.

    Args:
        folder: Where the lists are.

    Returns:
        The names, or None if there is no such file.

    Raises:
        InputError: A name is empty or appears twice.
    """
    path = folder / "classes.txt"
    if not path.is_file():
        return None
    classes = tuple(line.strip() for line in read_text(path).rstrip().splitlines())
    seen = {""}
    for number, name in enumerate(classes, start=1):
        if name in seen:
            raise InputError(f"{path}:{number}: expected a new class name, got {name!r}")
        seen.add(name)
    return classes


def order(classes: Iterable[str]) -> tuple[str, ...]:
    """Put class names in order: by value if all are integers, else alphabetically.

    Args:
        classes: Class names, repeated or not.

    Returns:
        Each name once.
    """
    unique = set(classes)
    return tuple(sorted(unique, key=_by_value if all(map(_is_integer, unique)) else None))


def _by_value(name: str) -> tuple[int, str, str]:
    digits = name.lstrip("0")
    return len(digits), digits, name


def name_labels(entries: Sequence[Entry], classes: tuple[str, ...] | None) -> list[Entry]:
    """Replace labels as written by class names.

    A label is text: `007` is the class `007`, and another one than `7`. Only where a `classes.txt`
    lies beside the list are integers from 0 indices into that, and a label that no integer is
    written as, such as `007`, is one of its names. Either all labels of a source are numbers or
    none is: a number among names is a slip of the pen.

    Args:
        entries: Entries with labels as written in a list or a CSV.
        classes: The names of `classes.txt`, if there is one.

    Returns:
        The same entries, with class names for labels.

    Raises:
        InputError: A label is negative, a fraction, out of range, or of the other kind.
    """
    integers = bool(entries) and _is_integer(entries[0].label)
    for label, where in ((entry.label, entry.where) for entry in entries):
        if _is_number(label) and not _is_integer(label):
            raise InputError(
                f"{where}: label {label!r} is neither an integer from 0 up nor a class name"
            )
        if _is_integer(label) != integers:
            others = "integers" if integers else "class names"
            raise InputError(f"{where}: label {label!r}, but the labels before it are {others}")
    if classes is None:
        return list(entries)
    counts = integers and all(_COUNT.fullmatch(entry.label) for entry in entries)
    return [entry._replace(label=_name(entry, counts, classes)) for entry in entries]


def _name(entry: Entry, counts: bool, classes: tuple[str, ...]) -> str:
    label, where = entry.label, entry.where
    if not counts:
        if label not in classes:
            raise InputError(f"{where}: label {label!r} is not in classes.txt")
        return label
    if int(label) >= len(classes):
        raise InputError(f"{where}: label {label}, but classes.txt names only {len(classes)}")
    return classes[int(label)]


def _is_integer(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 100


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower().lstrip("+-") not in {"nan", "inf", "infinity"}

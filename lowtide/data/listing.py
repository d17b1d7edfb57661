"""The images and classes that a source names, before any image is opened."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from .tasks import Task, differences

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The three roles and the names people give them."""


NO_VALUES: Mapping[str, str] = MappingProxyType({})


class Entry(NamedTuple):
    """One image and its class as written, with the place that says so (`train.txt:12`).

    A row that is read for something else than one class has its columns' values instead.
    """

    path: Path
    label: str
    where: str
    values: Mapping[str, str] = NO_VALUES


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

    @property
    def entries(self) -> list[Entry]:
        """Those of all splits."""
        return [entry for part in self.splits.values() for entry in part]

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


LAST = 1000
"""The rank of what is assumed where nothing else is recognised."""


def _never(path: Path) -> bool:
    return False


class Format(NamedTuple):
    """A format of files or folders: how it is recognised, and how it is read.

    Attributes:
        claims: Whether a path is in this format.
        read: Reads a path that it claims.
        rank: Of several formats that claim a path, the one of the smallest rank reads it.
        nested: Whether a path is so plainly a data set that the folder around it was not meant.
        file: What to call a file of this format where another file is refused.
        rows: Reads a path that it claims for something else than one class: entries with the values
            of their columns, and labels that mean nothing. None where it knows only classes.
    """

    claims: Callable[[Path], object]
    read: Callable[[Path], Listing]
    rank: int = 0
    nested: Callable[[Path], object] = _never
    file: str = ""
    rows: Callable[[Path], Listing] | None = None


class Named(NamedTuple):
    """A format of sources that are names and no paths.

    Attributes:
        prefix: What such a name begins with, such as `hf:`.
        read: Reads a name, prefix and all.
    """

    prefix: str
    read: Callable[[str], Listing]

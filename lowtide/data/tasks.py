"""What a published task should hold, and where a copy of it differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .listing import Entry


@dataclass(frozen=True)
class Task:
    """A published task.

    Attributes:
        name: Its usual name, which is its folder's.
        classes: How many classes it has.
        sizes: How many images each split has, as far as published; where `val` is given, a copy
            without one has these images in train.
        aliases: Its other names, in lower case with underscores.
        group: The group that it is averaged in, if its suite has groups.
    """

    name: str
    classes: int
    sizes: Mapping[str, int]
    aliases: tuple[str, ...] = ()
    group: str | None = None


def find(tasks: Iterable[Task], name: str) -> Task | None:
    """Look up a task by any of its names.

    Args:
        tasks: A suite.
        name: A name; case, blanks, hyphens and underscores make no difference.

    Returns:
        The task, or None if the suite has none of this name.
    """
    plain = _plain(name)
    return next((t for t in tasks if plain in map(_plain, (t.name, *t.aliases))), None)


def differences(task: Task, splits: Mapping[str, Sequence[Entry]]) -> tuple[str, ...]:
    """Compare what a source lists with what the task should hold.

    Args:
        task: The task it claims to be.
        splits: The entries of each role; without `train` only those that are there are compared.

    Returns:
        One sentence per difference; none if all is as published.
    """
    sizes, notes = dict(task.sizes), []
    if "train" not in splits:  # a set to be scored only
        sizes = {which: size for which, size in sizes.items() if which in splits}
    elif not splits.get("val") and "val" in sizes:
        sizes["train"] += sizes.pop("val")
    found = len({entry.label for entry in splits.get("train", ())})
    if "train" in splits and found != task.classes:
        notes.append(f"{task.name} should have {task.classes} classes, found {found}")
    for which, size in sizes.items():
        count = len(splits.get(which, ()))
        if count != size:
            notes.append(f"{task.name} should have {size} images in {which}, found {count}")
    return tuple(notes)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())

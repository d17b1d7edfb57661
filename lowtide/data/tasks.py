"""The published contents of tasks, and where a copy differs from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


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


def differences(task: Task, sizes: Mapping[str, int], classes: int) -> tuple[str, ...]:
    """Compare a copy of a task with what was published.

    Args:
        task: The task it claims to be.
        sizes: Images in each split; without `train` only the splits that are there are compared.
        classes: How many classes train has.

    Returns:
        One sentence per difference; none if all is as published.
    """
    wanted, notes = dict(task.sizes), []
    if "train" not in sizes:  # a set to be scored only
        wanted = {which: size for which, size in wanted.items() if which in sizes}
    elif not sizes.get("val") and "val" in wanted:
        wanted["train"] += wanted.pop("val")
    if "train" in sizes and classes != task.classes:
        notes.append(f"{task.name} should have {task.classes} classes, found {classes}")
    for which, size in wanted.items():
        found = sizes.get(which, 0)
        if found != size:
            notes.append(f"{task.name} should have {size} images in {which}, found {found}")
    return tuple(notes)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())

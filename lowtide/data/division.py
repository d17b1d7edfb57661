"""Choose the images of splits that were not declared, the same way for labels of every kind."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from .dataset import relative


class Placed(Protocol):
    """An image file with labels of any kind."""

    @property
    def path(self) -> Path:
        """Path of the file."""
        ...


T = TypeVar("T", bound=Placed)


def divide(
    splits: Mapping[str, Sequence[T]],
    root: Path,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    group: Callable[[T], str] | None = None,
) -> tuple[dict[str, list[T]], list[str]]:
    """Split off what was not declared, by name and seed.

    Where train is declared but val is not, val is split off train; where nothing is (`all`),
    val and test are. At least one image goes to each, and at least one is left for train.

    Args:
        splits: What was declared.
        root: What names are relative to.
        seed: Decides with the relative path alone, which files a split takes.
        val_fraction: Share of val.
        test_fraction: Share of test, where nothing is declared.
        group: Gives the class, where shares are of each class; by default they are of all images.

    Returns:
        The images of each split in the order in which they were given, and what was done.
    """
    shares = {"test": test_fraction} if "all" in splits else {}
    if "val" not in splits and splits.keys() & {"all", "train"}:
        shares["val"] = val_fraction
    train = splits.get("all") or splits.get("train", ())
    found = {which: list(part) for which, part in splits.items() if which not in ("all", "train")}
    found |= {which: [] for which in ("train", *shares)}
    groups: defaultdict[str, list[T]] = defaultdict(list)
    for item in train:
        groups[group(item) if group else ""].append(item)
    taken = {i: which for g in groups.values() for i, which in _draw(g, shares, seed, root)}
    for item in train:
        found[taken.get(id(item), "train")].append(item)
    whole = "each class" if group else "all"
    notes = [
        f"{which}: {len(found[which])} images split off, {share:.0%} of {whole}, seed {seed}"
        for which, share in shares.items()
    ]
    return found, notes + [f"{which}: none" for which in ("val", "test") if not found.get(which)]


def _draw(
    group: Sequence[Placed], shares: Mapping[str, float], seed: int, root: Path
) -> Iterator[tuple[int, str]]:
    """Give the identity of each image that is taken, and the split that takes it."""

    def turn(item: Placed) -> bytes:
        # By name, not by position: a copy of the folder splits alike on every system.
        return hashlib.sha256(os.fsencode(f"{seed}/{relative(item.path, root)}")).digest()

    queue = sorted(group, key=turn)
    for which, share in shares.items():
        count = max(0, min(max(1, round(share * len(group))), len(queue) - 1)) if share else 0
        yield from ((id(item), which) for item in queue[:count])
        del queue[:count]

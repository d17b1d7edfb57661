"""Which images a split takes where none was declared: the same for labels of every kind."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from .dataset import relative

T = TypeVar("T")


def divide(
    splits: Mapping[str, Sequence[T]],
    root: Path,
    place: Callable[[T], Path],
    *,
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
        place: Where an image lies.
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
    others = {which: list(part) for which, part in splits.items() if which not in ("all", "train")}

    def turn(i: int) -> bytes:
        # By name, not by position: a copy of the folder splits alike on every system.
        name = f"{seed}/{relative(place(train[i]), root)}"
        return hashlib.sha256(os.fsencode(name)).digest()

    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(train):
        groups[group(item) if group else ""].append(i)
    taken: dict[int, str] = {}
    for members in groups.values():
        queue = sorted(members, key=turn)
        for which, share in shares.items():
            count = min(max(1, round(share * len(members))), len(queue) - 1) if share else 0
            taken |= dict.fromkeys(queue[:count], which)
            del queue[:count]
    drawn: dict[str, list[T]] = {which: [] for which in ("train", *shares)}
    for i, item in enumerate(train):
        drawn[taken.get(i, "train")].append(item)
    whole = "each class" if group else "all"
    notes = [
        f"{which}: {len(drawn[which])} images split off, {share:.0%} of {whole}, seed {seed}"
        for which, share in shares.items()
    ]
    found = {**others, **drawn}
    return found, notes + [f"{which}: none" for which in ("val", "test") if not found.get(which)]

"""How images without declared splits are split: by their names and a seed."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from .dataset import relative
from .listing import Entry


def refuse_shares(val_fraction: float, test_fraction: float) -> None:
    """Refuse shares that leave nothing to train on.

    Args:
        val_fraction: Share of the images for val.
        test_fraction: Share of the images for test.

    Raises:
        InputError: One is negative, or both take all.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise InputError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction}: "
            "expected shares of 0 or more that leave some for train"
        )


def draw(
    entries: list[Entry],
    shares: Mapping[str, float],
    seed: int,
    root: Path,
    by_class: bool = True,
) -> dict[str, list[Entry]]:
    """Split images by their relative paths and a seed.

    Args:
        entries: The images.
        shares: Of each class, the share of each split but train.
        seed: Decides with the path alone which split an image goes to.
        root: The folder that paths are relative to.
        by_class: Whether each class is split by itself, or all images together.

    Returns:
        The entries of train and of each of the splits.
    """

    def turn(entry: Entry) -> bytes:
        # By name, not by position: a copy of the folder splits alike on every system.
        return hashlib.sha256(os.fsencode(f"{seed}/{relative(entry.path, root)}")).digest()

    groups = defaultdict(list)
    for entry in entries:
        groups[entry.label if by_class else ""].append(entry)
    taken: dict[Path, str] = {}
    for members in groups.values():
        queue = sorted(members, key=turn)
        for which, share in shares.items():
            # At least one for each split, and at least one left for train.
            count = min(max(1, round(share * len(members))), len(queue) - 1) if share else 0
            taken |= dict.fromkeys((entry.path for entry in queue[:count]), which)
            del queue[:count]
    return {
        which: [entry for entry in entries if taken.get(entry.path, "train") == which]
        for which in ("train", *shares)
    }

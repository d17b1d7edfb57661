"""Read a folder, lists or a CSV into a `Dataset`, refusing at the door what cannot work."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from .dataset import Dataset, Sample, fingerprint, relative
from .folders import read_class_folders, read_split_folders
from .images import faults
from .listing import SPLITS, Entry, Listing, children, hint, is_image, order, role
from .lists import lists_in, read_list, read_lists
from .tables import read_csv


def read(
    source: Path | str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    skip_bad_images: bool = False,
) -> Dataset:
    """Read a labelled set of images and check all of it once.

    The source is a folder with `train`, `val`, `test` folders of class folders; a folder of class
    folders; a folder with lists of `path label` (VTAB-1k's names or plain ones); one such list;
    or a CSV. Where train is declared but val is not, val is split off train; where nothing is
    declared, val and test are. A test split that was not given is empty.

    Args:
        source: The folder or file.
        seed: Decides, with each file's relative path alone, which files a split takes.
        val_fraction: Share of each class that goes to val, where it is split off.
        test_fraction: Share of each class that goes to test, where nothing is declared.
        skip_bad_images: Drop images that cannot be read, and record them, instead of refusing.

    Returns:
        The data set. Its classes are those of train, or all of a `classes.txt`.

    Raises:
        InputError: The source cannot work; the message names the first offender.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise InputError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction}: "
            "expected shares of 0 or more that leave some for train"
        )
    listing = _list(Path(os.path.abspath(Path(source).expanduser())))
    classes = _classes(listing)
    _refuse_duplicates(listing)
    _refuse_missing(listing)
    skipped = _check(listing, skip_bad_images)
    splits, notes = _split(_without(listing, skipped), listing, seed, val_fraction, test_fraction)
    index = {name: number for number, name in enumerate(classes)}
    samples = {
        which: tuple(Sample(entry.path, index[entry.label]) for entry in splits.get(which, ()))
        for which in SPLITS
    }
    return Dataset(
        train=samples["train"],
        val=samples["val"],
        test=samples["test"],
        classes=classes,
        fingerprint=fingerprint(listing.root, samples, classes),
        format=listing.format,
        root=listing.root,
        notes=(*listing.notes, *notes),
        skipped=tuple(f"{relative(path, listing.root)}: {why}" for path, why in skipped.items()),
    )


def _list(source: Path) -> Listing:
    if not os.path.exists(source):
        raise InputError(f"{source} does not exist{hint(source)}")
    if source.is_file():
        if source.suffix.lower() in {".csv", ".tsv"}:
            return read_csv(source)
        if source.suffix.lower() == ".txt":
            return read_list(source)
        raise InputError(f"{source} is a file: expected a folder, a list (.txt) or a CSV")
    if lists_in(source):
        return read_lists(source)
    found = children(source)
    folders = [child for child in found if child.is_dir()]
    roles = {role(child.name) for child in folders}
    if "train" in roles:
        return read_split_folders(source)
    if roles & {"val", "test"}:
        names = ", ".join(child.name for child in folders)
        above = f"; did you mean {source.parent}?" if lists_in(source.parent) else ""
        raise InputError(f"{source} has no train folder, only {names}{above}")
    tables = [child for child in found if child.suffix.lower() in {".csv", ".tsv"}]
    meant = [child for child in folders if _holds_a_dataset(child, folders)] or tables
    if meant:
        raise InputError(f"{source} holds no class folders; did you mean {meant[0]}?")
    return read_class_folders(source)


def _holds_a_dataset(folder: Path, siblings: list[Path]) -> bool:
    inside = children(folder)
    names = {role(child.name) for child in inside if child.is_dir()}
    only = len(siblings) == 1 and any(child.is_dir() for child in inside)
    return "train" in names or bool(lists_in(folder)) or (only and not any(map(is_image, inside)))


def _classes(listing: Listing) -> tuple[str, ...]:
    train = listing.splits.get("all") or listing.splits["train"]
    present = order(entry.label for entry in train)
    if len(present) < 2:
        raise InputError(
            f"{listing.root}: only one class to learn, {present[0]!r}; expected two or more"
        )
    classes = listing.classes or present
    known = set(classes)
    for which, entries in listing.splits.items():
        for entry in entries:
            if entry.label not in known:
                near = difflib.get_close_matches(entry.label, classes, n=1)
                raise InputError(
                    f"{entry.where}: class {entry.label!r} of {which} is not in train"
                    + (f"; did you mean {near[0]}?" if near else "")
                )
    return classes


def _refuse_duplicates(listing: Listing) -> None:
    places = defaultdict(list)
    for entries in listing.splits.values():
        for entry in entries:
            places[os.path.normpath(entry.path)].append(entry.where)
    twice = {path: where for path, where in places.items() if len(where) > 1}
    for path, where in twice.items():
        raise InputError(
            f"{len(twice)} images are listed more than once, first {path}: {where[0]}, {where[1]}"
        )


def _refuse_missing(listing: Listing) -> None:
    entries = [entry for part in listing.splits.values() for entry in part]
    missing = [entry for entry in entries if not os.path.isfile(entry.path)]
    if missing:
        path, _, where = missing[0]
        raise InputError(
            f"{len(missing)} of {len(entries)} files do not exist, "
            f"first {path} ({where}){hint(path)}"
        )


def _check(listing: Listing, skip_bad_images: bool) -> dict[Path, str]:
    paths = [entry.path for part in listing.splits.values() for entry in part]
    bad = faults(paths)
    if bad and not skip_bad_images:
        named = "; ".join(f"{path} ({why})" for path, why in list(bad.items())[:3])
        raise InputError(
            f"{len(bad)} of {len(paths)} images cannot be read: {named}"
            f"{'; ...' if len(bad) > 3 else ''} (--skip-bad-images leaves them out)"
        )
    return bad


def _without(listing: Listing, skipped: Mapping[Path, str]) -> dict[str, list[Entry]]:
    kept = {
        which: [entry for entry in entries if entry.path not in skipped]
        for which, entries in listing.splits.items()
    }
    for which in kept.keys() & {"train", "all"}:
        left = {entry.label for entry in kept[which]}
        for entry in listing.splits[which]:
            if entry.label not in left:
                raise InputError(f"{listing.root}: no image of class {entry.label!r} can be read")
    return kept


def _split(
    splits: dict[str, list[Entry]],
    listing: Listing,
    seed: int,
    val_fraction: float,
    test_fraction: float,
) -> tuple[dict[str, list[Entry]], list[str]]:
    shares = {"test": test_fraction} if "all" in splits else {}
    shares |= {} if "val" in splits else {"val": val_fraction}
    if "all" in splits:
        splits = {"train": splits["all"]}
    drawn = _draw(splits["train"], shares, seed, listing.root)
    notes = [
        f"{which}: {len(drawn[which])} images split off, {share:.0%} of each class, seed {seed}"
        for which, share in shares.items()
    ]
    splits = {**splits, **drawn}
    notes += [f"{which}: none" for which in ("val", "test") if not splits.get(which)]
    return splits, notes


def _draw(
    entries: list[Entry], shares: Mapping[str, float], seed: int, root: Path
) -> dict[str, list[Entry]]:
    def turn(entry: Entry) -> bytes:
        # By name, not by position: a copy of the folder splits alike on every system.
        return hashlib.sha256(os.fsencode(f"{seed}/{relative(entry.path, root)}")).digest()

    by_class = defaultdict(list)
    for entry in entries:
        by_class[entry.label].append(entry)
    taken: dict[Path, str] = {}
    for members in by_class.values():
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

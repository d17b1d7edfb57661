"""Read any source into a `Dataset`, refusing at the door what cannot work."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NoReturn

from ..errors import InputError
from ..targets import KINDS, Label
from .columns import read_columns
from .dataset import Dataset, Sample, fingerprint, relative
from .division import divide
from .formats import find
from .images import Look, bits_of, look
from .labels import akin, order
from .listing import SPLITS, Entry, Listing
from .tree import hint


def read(
    source: Path | str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    skip_bad_images: bool = False,
    classes: Sequence[str] | None = None,
    task: str = "classify",
    target: str | None = None,
) -> Dataset:
    """Read a labelled set of images and check all of it once.

    The source is a folder, a list, a table or a name, in any of the formats of `formats/`; it is
    recognised by what it holds. Where train is declared but val is not, val is split off train;
    where nothing is declared, val and test are. A test split that was not given is empty.

    Args:
        source: The folder or file.
        seed: Decides, with each file's relative path alone, which files a split takes.
        val_fraction: Share of each class that goes to val, where it is split off.
        test_fraction: Share of each class that goes to test, where nothing is declared.
        skip_bad_images: Drop images that cannot be read, and record them, instead of refusing.
        classes: Those of a model that is to be scored on the set, in order: labels then are
            indices into these. Such a set may lack some of them, and a train split.
        task: What is learnt of an image; all but `classify` take a table or a list.
        target: The columns of a table that hold it, with commas between; by default `label` or a
            like name, or all that are left.

    Returns:
        The data set. Its classes are those of train, or all of a `classes.txt`, or `classes`.

    Raises:
        InputError: The source cannot work; the message names the first offender.
    """
    _refuse_shares(val_fraction, test_fraction)
    listing = find(source, task)
    listing, classes, labels = _labelled(listing, classes, task, target)
    _refuse_duplicates(listing)
    _refuse_missing(listing)
    looks = look([entry.path for entry in listing.entries])
    skipped = _unreadable(looks, skip_bad_images)
    bits, of_bits = _depth(looks)
    by_class = KINDS[task].balances
    kept = _without(listing, skipped, by_class)
    label: attrgetter[str] | None = attrgetter("label") if by_class else None
    splits, notes = divide(kept, listing.root, seed, val_fraction, test_fraction, label)
    samples = {
        which: tuple(Sample(entry.path, labels[entry.label]) for entry in splits.get(which, ()))
        for which in SPLITS
    }
    return Dataset(
        train=samples["train"],
        val=samples["val"],
        test=samples["test"],
        classes=classes,
        fingerprint=fingerprint(listing.root, samples, classes, task),
        format=listing.format,
        root=listing.root,
        notes=(*listing.notes, *listing.differences(), *akin(classes, task), *of_bits, *notes),
        skipped=tuple(f"{relative(path, listing.root)}: {why}" for path, why in skipped.items()),
        bits=bits,
        task=task,
    )


def _labelled(
    listing: Listing, classes: Sequence[str] | None, task: str, target: str | None
) -> tuple[Listing, tuple[str, ...], Mapping[str, Label]]:
    """Read what is learnt: the names of the outputs, and the label that each text stands for."""
    if task != "classify":
        if classes is None and not (listing.splits.get("all") or listing.splits.get("train")):
            _refuse_no_train(listing)
        return read_columns(listing, task, target, classes)
    if target is not None:
        raise InputError("target names columns for multilabel and regress, not for task classify")
    if classes is None:
        classes = _classes(listing)
    else:
        listing = _adopt(listing, classes)
    return listing, tuple(classes), {name: number for number, name in enumerate(classes)}


def _refuse_shares(val_fraction: float, test_fraction: float) -> None:
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise InputError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction}: "
            "expected shares of 0 or more that leave some for train"
        )


def _classes(listing: Listing) -> tuple[str, ...]:
    train = listing.splits.get("all") or listing.splits.get("train")
    if not train:
        _refuse_no_train(listing)
    present = order(entry.label for entry in train)
    if len(present) < 2:
        raise InputError(
            f"{listing.root}: only one class to learn, {present[0]!r}; expected two or more"
        )
    classes = listing.classes or present
    _refuse_unknown(listing, classes, "in train")
    return classes


def _refuse_no_train(listing: Listing) -> NoReturn:
    raise InputError(
        f"{listing.root} has nothing to train on, only {', '.join(listing.splits)} "
        f"({listing.format})"
    )


def _adopt(listing: Listing, classes: Sequence[str]) -> Listing:
    """Give a set to be scored the classes of the model; ImageNet's may be written as 0 to 999."""
    labels = {entry.label for entry in listing.entries}
    imagenet = len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in classes)
    if imagenet and all(label.isdecimal() and int(label) < 1000 for label in labels):
        splits = {
            which: [entry._replace(label=classes[int(entry.label)]) for entry in entries]
            for which, entries in listing.splits.items()
        }
        note = "labels 0 to 999 are WordNet ids in order"
        listing = dataclasses.replace(listing, splits=splits, notes=(*listing.notes, note))
    _refuse_unknown(listing, classes, "known to the run")
    return listing


def _refuse_unknown(listing: Listing, classes: Sequence[str], where: str) -> None:
    known = set(classes)
    for which, entries in listing.splits.items():
        for entry in entries:
            if entry.label not in known:
                near = difflib.get_close_matches(entry.label, classes, n=1)
                raise InputError(
                    f"{entry.where}: class {entry.label!r} of {which} is not {where}"
                    + (f"; did you mean {near[0]}?" if near else "")
                )


def _refuse_duplicates(listing: Listing) -> None:
    places = defaultdict(list)
    real = functools.cache(os.path.realpath)
    for entry in listing.entries:
        # By the real folder: two links may lead to one. A linked file is a copy, see `check`.
        folder = real(os.path.dirname(entry.path))
        places[os.path.join(folder, entry.path.name)].append(entry.where)
    twice = {path: where for path, where in places.items() if len(where) > 1}
    for path, where in twice.items():
        raise InputError(
            f"{len(twice)} images are listed more than once, first {path}: {where[0]}, {where[1]}"
        )


def _refuse_missing(listing: Listing) -> None:
    entries = listing.entries
    missing = [entry for entry in entries if not os.path.isfile(entry.path)]
    if missing:
        first = missing[0]
        raise InputError(
            f"{len(missing)} of {len(entries)} files do not exist, "
            f"first {first.path} ({first.where}){hint(first.path)}"
        )


def _unreadable(looks: Mapping[Path, Look], skip_bad_images: bool) -> dict[Path, str]:
    bad = {path: seen.fault for path, seen in looks.items() if seen.fault}
    if bad and not skip_bad_images:
        named = "; ".join(f"{path} ({why})" for path, why in list(bad.items())[:3])
        raise InputError(
            f"{len(bad)} of {len(looks)} images cannot be read: {named}"
            f"{'; ...' if len(bad) > 3 else ''} (--skip-bad-images leaves them out)"
        )
    return bad


def _depth(looks: Mapping[Path, Look]) -> tuple[int, list[str]]:
    """Tell how many of their 16 bits the images of a set use, and say so where it is fewer."""
    peaks = [seen.peak for seen in looks.values() if seen.peak >= 0]
    bits = bits_of(max(peaks)) if peaks else 16
    if bits == 16:
        return bits, []
    return bits, [
        f"{len(peaks)} images have 16-bit pixels and none is above {max(peaks)}: they are taken "
        f"for {bits} bits, value v is read as v / {1 << bits - 8}"
    ]


def _without(
    listing: Listing, skipped: Mapping[Path, str], by_class: bool
) -> dict[str, list[Entry]]:
    kept = {
        which: [entry for entry in entries if entry.path not in skipped]
        for which, entries in listing.splits.items()
    }
    for which in kept.keys() & {"train", "all"}:
        if not by_class and not kept[which]:
            raise InputError(f"{listing.root}: no image of {which} can be read")
        left = {entry.label for entry in kept[which]}
        for entry in listing.splits[which]:
            if by_class and entry.label not in left:
                raise InputError(f"{listing.root}: no image of class {entry.label!r} can be read")
    return kept

"""Read labels from a table's columns: several labels an image, or a number."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence

from ..errors import InputError, shown
from ..targets import KINDS, Label
from .labels import order
from .listing import Entry, Listing

NAMED = ("label", "labels", "class", "target", "value")
"""Columns that hold what is learnt, where none is named."""
FLAGS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
SEPARATOR = ";"


def read_columns(
    listing: Listing, task: str, target: str | None, names: Sequence[str] | None
) -> tuple[Listing, tuple[str, ...], dict[str, Label]]:
    """Read what is to be learnt from rows.

    Args:
        listing: Entries with their rows' values.
        task: `multilabel` or `regress`.
        target: Columns with commas between; None where they are to be found.
        names: Those of a model that is to be scored on the rows.

    Returns:
        The listing with labels as they are recorded, the names of the outputs, and the label that
        each text stands for.

    Raises:
        InputError: A column is missing, or a value is none that it can be.
    """
    entries = listing.entries
    columns = [c for c in entries[0].values if c]
    if task == "regress":
        column = _chosen(listing, columns, target, names, 1)[0]
        found = tuple(names or (column,))
        labels = [_number(entry, column) for entry in entries]
    else:
        chosen = _chosen(listing, columns, target, names, len(columns))
        found, labels = _labels(listing, entries, chosen, names)
    texts = [KINDS[task].text(found, label) for label in labels]
    written = iter(texts)
    splits = {
        which: [entry._replace(label=next(written)) for entry in part]
        for which, part in listing.splits.items()
    }
    known = dict(zip(texts, labels, strict=True))
    return dataclasses.replace(listing, splits=splits), tuple(found), known


def _chosen(
    listing: Listing,
    columns: Sequence[str],
    target: str | None,
    names: Sequence[str] | None,
    most: int,
) -> list[str]:
    """Choose columns: those that are named, or the run's, or one of a usual name, or all."""
    place = f"{listing.root} ({listing.format})"
    if target is not None:
        wanted = [name.strip() for name in target.split(",")]
        for name in wanted:
            if name not in columns:
                near = difflib.get_close_matches(name, columns, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(columns)}"
                raise InputError(f"{place} has no column {shown(name)}: {hint}")
    elif names and all(name in columns for name in names):
        wanted = list(names)
    else:
        wanted = [c for c in NAMED if c in columns][:1] or list(columns)
    if not wanted or len(wanted) > most:
        raise InputError(
            f"{place}: expected one column to learn, found {', '.join(wanted) or 'none'}; name it"
            f" with --target, or call it {' or '.join(NAMED)}"
        )
    return wanted


def _labels(
    listing: Listing, entries: Sequence[Entry], columns: Sequence[str], names: Sequence[str] | None
) -> tuple[tuple[str, ...], list[Label]]:
    """Read labels from one column of names, or from one column of 0 and 1 for each."""
    alone = len(columns) == 1 and not _are_flags(entries, columns[0])
    if not alone:
        if names and set(names) - set(columns):
            missing = next(name for name in names if name not in columns)
            raise InputError(f"{listing.root}: no column for label {shown(missing)} of the run")
        found = tuple(names or columns)
        return found, [tuple(_flag(entry, c) for c in found) for entry in entries]
    column = columns[0]
    each = [_split(entry, column) for entry in entries]
    trained = listing.splits.get("all") or listing.splits.get("train") or entries
    learnt = {entry.path for entry in trained}
    met = (n for e, words in zip(entries, each, strict=True) if e.path in learnt for n in words)
    found = tuple(names) if names else order(met)
    if not found:
        raise InputError(f"{listing.root}: no image to learn from has a label in {column}")
    known = {name: i for i, name in enumerate(found)}
    for entry, words in zip(entries, each, strict=True):
        for word in words:
            if word not in known:
                near = difflib.get_close_matches(word, found, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                whose = "the run's" if names else "in train"
                raise InputError(f"{entry.where}: label {shown(word)} is not {whose}{hint}")
    return found, [tuple(float(name in words) for name in found) for words in each]


def _are_flags(entries: Sequence[Entry], column: str) -> bool:
    return all(entry.values.get(column, "").strip().lower() in FLAGS for entry in entries)


def _split(entry: Entry, column: str) -> list[str]:
    words = [word.strip() for word in entry.values.get(column, "").split(SEPARATOR)]
    words = [word for word in words if word]
    if twice := [word for word in words if words.count(word) > 1]:
        raise InputError(f"{entry.where}: label {shown(twice[0])} is there twice")
    return words


def _flag(entry: Entry, column: str) -> float:
    text = entry.values.get(column, "").strip()
    if text.lower() not in FLAGS:
        raise InputError(
            f"{entry.where}: column {column} holds {shown(text)}, expected 0 or 1; --target names"
            " the columns to learn"
        )
    return FLAGS[text.lower()]


def _number(entry: Entry, column: str) -> Label:
    text = entry.values.get(column, "").strip()
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{entry.where}: column {column} holds {shown(text)}, expected a number")
    return (value,)

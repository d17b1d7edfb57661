"""Tables and plots of dense runs: by size of objects, by class, by recall, and by image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from ..targets.words import word
from ..training.examples import Example, Examples, read_examples
from .cells import Cell, Column, Table, number
from .confusion import heat_table
from .plots import precision_recall
from .rows import Entry
from .tables import Board

SIZES = {
    "map": "all",
    "map_50": "IoU .50",
    "map_75": "IoU .75",
    "map_small": "small",
    "map_medium": "medium",
    "map_large": "large",
}
"""Columns of the precision of boxes and of masks; the ends of the names of scores."""
KINDS = {"box": "boxes", "mask": "masks"}
NAMED = 8
"""Classes up to which each has a line."""


@dataclass(frozen=True)
class Look:
    """The plots and example images of one method on one data set.

    Attributes:
        label: The method.
        curves: By what is found, a plot of a line per class.
        best: The best images, from its first row that kept some.
        worst: The worst ones.
    """

    label: str
    curves: Sequence[Markup]
    best: Sequence[Example]
    worst: Sequence[Example]


def precision_table(board: Board) -> Table | None:
    """Tell the average precision of objects of each size, means over seeds.

    Args:
        board: The methods on a data set.

    Returns:
        One row per method; None where no objects were looked for.
    """
    found = [e for e in board.entries if e.runs and e.metric in {"box_map", "mask_map"}]
    if not found:
        return None
    kinds = [k for k in KINDS if any(e.score(f"{k}_map") is not None for e in found)]
    names = [(k, f"{k}_{end}", said) for k in kinds for end, said in SIZES.items()]
    heads = [Column("method", False), *(Column(said, group=KINDS[k]) for k, _, said in names)]
    rows = tuple(
        (Cell(e.label, e.label), *(number(e.score(name), ".1f", 1e-2) for _, name, _ in names))
        for e in found
    )
    note = (
        "COCO's average precision, the mean over classes and IoU thresholds .50 to .95. Small"
        " objects have less than 32 x 32 pixels of the image, large ones more than 96 x 96."
    )
    title = f"{board.data}: average precision, %, by IoU and by size of object"
    return Table(title, tuple(heads), rows, (note,))


def class_tables(board: Board) -> list[Table]:
    """Tell what each method scores on each class, means over seeds.

    Args:
        board: The methods on a data set.

    Returns:
        A heat map of methods by classes for each score, of many classes the hardest.
    """
    known = {e.label: _by_class(e) for e in board.entries if e.runs}
    metrics = dict.fromkeys(m for scores in known.values() for m in scores)
    return [_class_table(board, m, {k: s[m] for k, s in known.items() if m in s}) for m in metrics]


def _by_class(entry: Entry) -> dict[str, dict[str, float]]:
    """Average scores of classes over the seeds in which they are defined."""
    together: dict[str, dict[str, list[float]]] = {}
    for run in entry.runs:
        for metric, scores in (run.test_class_scores or {}).items():
            for name, value in scores.items():
                together.setdefault(metric, {}).setdefault(name, []).append(value)
    return {
        metric: {name: fmean(values) for name, values in scores.items()}
        for metric, scores in together.items()
    }


def _class_table(board: Board, metric: str, known: Mapping[str, Mapping[str, float]]) -> Table:
    names = {c: c for scores in known.values() for c in scores}
    return heat_table(f"{board.data}: {word(metric)} of each class, %", known, names, len(names))


def recall_plots(board: Board, numbers: Mapping[str, int]) -> list[Markup]:
    """Draw precision against recall, a line per method: means over classes and seeds.

    Args:
        board: The methods on a data set.
        numbers: Number of each method.

    Returns:
        A plot of boxes and one of masks, of those that were kept.
    """
    lines: dict[str, dict[str, Sequence[float]]] = {}
    for entry in board.entries:
        kept = [read_examples(folder).curves for folder in entry.result.folders]
        for kind in KINDS:
            if rows := [row for curves in kept for row in curves.get(kind, {}).values()]:
                lines.setdefault(kind, {})[entry.label] = _mean(rows)
    return [
        precision_recall(rows, numbers, f"{KINDS[kind]}, mean over classes")
        for kind, rows in lines.items()
    ]


def looks(entries: Iterable[Entry]) -> list[Look]:
    """Gather the plots and example images of each method.

    Args:
        entries: The methods on a data set.

    Returns:
        One of each that kept something: from its first row that did.
    """
    found = []
    for e in entries:
        kept = next((k for f in e.result.folders if _any(k := read_examples(f))), None)
        if kept is not None:
            found.append(Look(e.label, _class_curves(kept), kept.best, kept.worst))
    return found


def _any(kept: Examples) -> bool:
    return bool(kept.best or kept.worst or kept.curves)


def _class_curves(kept: Examples) -> list[Markup]:
    """Draw a line per class; of many classes those that are found worst."""
    drawn = []
    for kind, rows in kept.curves.items():
        classes = sorted(rows, key=lambda c: fmean(rows[c]))[:NAMED]
        more = f", the {NAMED} hardest of {len(rows)} classes" if len(rows) > NAMED else ""
        shown = {c: rows[c] for c in rows if c in classes}
        numbers = {c: i for i, c in enumerate(shown)}
        said = f"{KINDS.get(kind, kind)} by class{more}"
        drawn += [precision_recall(shown, numbers, said, named=True)] if shown else []
    return drawn


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(values) for values in zip(*rows, strict=True)]

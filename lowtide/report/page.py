"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from statistics import fmean

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..targets.words import word
from .cells import Column
from .compare import warnings
from .confusion import MOST, class_names, class_table, confusion, heat_map, mistakes, pairs_table
from .dense import class_tables, looks, precision_table, recall_plots
from .paired import paired_table
from .plots import Point, bar, curves, histories, pareto
from .provenance import provenance_table
from .rows import Entry
from .svg import drawing, mark
from .tables import (
    Board,
    boards,
    grouped,
    mean_accuracies,
    memory_table,
    overview_table,
    parts_of,
    result_table,
    scores_table,
)
from .words import MEMORY, REPEAT, SIGNIFICANCE, heading

TEMPLATES = files(__package__) / "templates"
LOG_FROM = 8.0
"""Ratio of the largest to the smallest cost from which an axis is logarithmic."""


@dataclass(frozen=True)
class Section:
    """A figure from elsewhere, such as one of `lowtide inspect`.

    Attributes:
        title: What it shows.
        svg: The figure, as SVG. It is shown as an image: nothing in it can run or load.
    """

    title: str
    svg: str


def html(title: str, entries: Sequence[Entry], sections: Iterable[Section] = ()) -> str:
    """Write the report as one HTML page.

    Args:
        title: Its title.
        entries: All that is reported.
        sections: Figures from elsewhere, shown at its end.

    Returns:
        HTML with its style, script and plots inside; its policy forbids it to load anything.
    """
    labels = list(dict.fromkeys(e.label for e in entries))
    numbers = {label: i for i, label in enumerate(labels)}
    style, script = _read("page.css"), _read("page.js")
    models = [
        _model(i, model, played, numbers)
        for i, (model, played) in enumerate(boards(entries).items())
    ]
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_read("page.html"), globals={"groups": _groups, "numbers": numbers})
    return page.render(
        title=title,
        facts=_facts(entries),
        models=models,
        provenance=provenance_table(entries),
        sections=[(s.title, _image(s.svg)) for s in sections],
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)};"
        f" script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
        words={"significance": SIGNIFICANCE, "memory": MEMORY, "repeat": REPEAT},
    )


def _groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Count neighbouring columns of one group."""
    return [(name, len(list(same))) for name, same in groupby(columns, key=lambda c: c.group)]


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _image(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _facts(entries: Sequence[Entry]) -> str:
    """Say in one line what is reported."""
    rows = sum(len(e.result.runs) for e in entries)
    failed = sum(len(e.result.failed) for e in entries)
    methods = len({e.label for e in entries})
    data = len({e.data for e in entries})
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{_count(methods, 'method')}, {_count(data, 'data set')}, {_count(rows, 'finished row')}"
        f"{f', {failed} failed' if failed else ''}. Written {today}."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _model(
    number: int, model: str, played: Sequence[Board], numbers: Mapping[str, int]
) -> dict[str, object]:
    """Gather what is shown of one backbone."""
    tested = [e for b in played for e in b.entries if e.runs]
    largest: dict[str, Entry] = {}
    for e in tested:
        if e.label not in largest or (e.planned or 0) > (largest[e.label].planned or 0):
            largest[e.label] = e
    parts = list(dict.fromkeys(p for e in largest.values() for p in parts_of(e)))
    longest = max((e.planned or 1 for e in largest.values()), default=1)
    return {
        "id": f"m{number}",
        "name": model or "No finished row",
        "overview": overview_table(played) if len(played) > 1 else None,
        "plots": _overview_plots(played, numbers) if len(played) > 1 else [],
        "legend": _legend(numbers, {label: label for label in mean_accuracies(played)}),
        "boards": [_board(f"m{number}d{i}", b, numbers) for i, b in enumerate(played)],
        "memory": memory_table(list(largest.values())) if largest else None,
        "bars": {label: bar(parts_of(e), parts, longest) for label, e in largest.items()},
        "parts": parts,
    }


def _metric(tested: Sequence[Entry]) -> str:
    return word(tested[0].metric) if tested else "accuracy"


def _board(name: str, board: Board, numbers: Mapping[str, int]) -> dict[str, object]:
    """Gather what is shown of one data set."""
    tested = [e for e in board.entries if e.runs]
    losses, validated = histories(tested)
    few = len(class_names(tested)) <= MOST
    return {
        "id": name,
        "heading": heading(board),
        "warnings": warnings(board.entries),
        "table": result_table(board),
        "scores": [t for t in (scores_table(board), precision_table(board)) if t],
        "paired": paired_table(board),
        "plots": [
            *(
                _pareto([(e, (e.accuracy or 0), cost(e)) for e in tested], words, numbers)
                for words, cost in _costs(tested).items()
                if any(cost(e) for e in tested)
            ),
            *(
                curves(lines, numbers, what)
                for what, lines in (
                    ("training loss", losses),
                    (f"validation {_metric(tested)}, %", validated),
                )
                if lines
            ),
            *recall_plots(board, numbers),
        ],
        "legend": _legend(numbers, {e.label: _said(e) for e in tested}),
        "searched": any(e.search for e in tested),
        "classes": class_table(board),
        "confusions": [
            (e.label, heat_map(e) if few else None, None if few else pairs_table(e))
            for e in tested
            if confusion(e)
        ],
        "by_class": class_tables(board),
        "looks": looks(tested),
        "metric": _metric(tested),
        "mistakes": [(e.label, found) for e in tested if (found := mistakes(e))],
    }


Cost = Callable[[Entry], float | None]


def _costs(tested: Sequence[Entry]) -> dict[str, Cost]:
    """Name the costs that accuracy is set against."""
    measured = all(e.measured for e in tested)
    return {
        "trained parameters": lambda e: e.trained,
        f"{'measured' if measured else 'planned'} peak, MiB": lambda e: (
            ((e.measured if measured else e.planned) or 0) / 2**20
        ),
        "ms per step": lambda e: e.seconds and 1e3 * e.seconds,
    }


def _said(e: Entry) -> str:
    """Say a method's numbers in one line."""
    said = [f"{e.label}: {100 * (e.accuracy or 0):.1f} %", f"{e.trained or 0:,d} parameters"]
    said += [f"{((e.measured or e.planned) or 0) / 2**20:,.1f} MiB"]
    said += [f"{1e3 * e.seconds:,.1f} ms per step"] if e.seconds else []
    return ", ".join(said)


def _pareto(
    given: Sequence[tuple[Entry, float, float | None]], words: str, numbers: Mapping[str, int]
) -> Markup:
    points = [
        Point(e.label, cost, 100 * value, f"{e.label}: {100 * value:.1f} %, {cost:,.5g} {words}")
        for e, value, cost in given
        if cost
    ]
    costs = [p.cost for p in points]
    metric = _metric([e for e, _, _ in given])
    return pareto(points, numbers, words, log=max(costs) > LOG_FROM * min(costs), metric=metric)


def _overview_plots(played: Sequence[Board], numbers: Mapping[str, int]) -> list[Markup]:
    """Draw the mean over data sets against mean costs, of methods tested on all of them."""
    kind = "mean of groups" if grouped(played) else "mean of data sets"
    means = {label: mean[kind] for label, mean in mean_accuracies(played).items()}
    by_label = {
        label: [e for b in played for e in b.entries if e.label == label] for label in means
    }
    tested = [e for same in by_label.values() for e in same]
    plots = []
    for words, cost in _costs(tested).items():
        given: list[tuple[Entry, float, float | None]] = []
        for label, same in by_label.items():
            each = [c for e in same if (c := cost(e))]
            given.append((same[0], means[label], fmean(each) if len(each) == len(same) else None))
        if any(cost for _, _, cost in given):
            plots.append(_pareto(given, f"{words}, mean", numbers))
    return plots


def _legend(numbers: Mapping[str, int], said: Mapping[str, str]) -> list[dict[str, object]]:
    return [
        {
            "label": label,
            "m": numbers[label],
            "said": text,
            "mark": drawing(label, mark(numbers[label], 7, 7), width=14, height=14),
        }
        for label, text in said.items()
    ]

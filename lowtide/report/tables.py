"""The tables, as data: what HTML, Markdown and CSV write each in their way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .cells import Cell, Column, Table, number
from .compare import Verdict, averages, judge
from .rows import Entry


@dataclass(frozen=True)
class Board:
    """Every method on one backbone and one data set.

    Attributes:
        model: The backbone.
        data: The data set.
        group: Its group, or empty.
        entries: The methods, best first, those without a test accuracy last.
        verdicts: How each stands to the best, by label.
    """

    model: str
    data: str
    group: str
    entries: tuple[Entry, ...]
    verdicts: Mapping[str, Verdict]


def boards(entries: Iterable[Entry]) -> dict[str, list[Board]]:
    """Sort entries by backbone and data set.

    Args:
        entries: All that is reported.

    Returns:
        Boards by backbone.
    """
    by_data: dict[tuple[str, str], list[Entry]] = {}
    for e in entries:
        by_data.setdefault((e.model, e.data), []).append(e)
    found: dict[str, list[Board]] = {}
    for (model, data), same in by_data.items():
        ranked = tuple(sorted(same, key=lambda e: -1.0 if e.accuracy is None else -e.accuracy - 2))
        found.setdefault(model, []).append(Board(model, data, same[0].group, ranked, judge(ranked)))
    return found


def result_table(board: Board) -> Table:
    """Tell what each method reached on one data set, and at which cost.

    Args:
        board: The methods.

    Returns:
        One row per method, failed and unfinished ones too.
    """
    columns = ["test accuracy, %", "trained parameters", "planned peak, MiB", "measured peak, MiB"]
    columns += ["ms per step", "learning rate"]
    return Table(
        f"{board.data}: test accuracy and what it costs",
        (Column("method", False), *map(Column, columns), Column("seeds", False)),
        tuple(
            (
                Cell(e.label, e.label),
                _accuracy(e, board.verdicts.get(e.label)),
                number(e.trained, ",d"),
                number(e.planned, ",.1f", 2**20),
                number(e.measured, ",.1f", 2**20),
                number(e.seconds, ",.1f", 1e-3),
                number(e.result.rate, "g"),
                Cell(e.status, e.status),
            )
            for e in board.entries
        ),
        tuple(f"{e.label}: {e.missing}" for e in board.entries if e.missing),
    )


def overview_table(played: Sequence[Board]) -> Table:
    """Tell what each method reached on every data set, and on average.

    Args:
        played: The data sets of one backbone.

    Returns:
        One row per method, by falling mean of the data sets, those with a gap last.
    """
    groups = [b.group for b in played]
    heads = [Column("method", False), *(Column(b.data, group=b.group) for b in played)]
    several = len(set(groups)) > 1
    heads += [Column("mean of groups", group="averages")] if several else []
    heads += [Column("mean of data sets", group="averages" if any(groups) else "")]
    means = mean_accuracies(played)
    tops = [max((m[i] for m in means.values()), default=None) for i in (0, 1)]
    labels = list(dict.fromkeys(e.label for b in played for e in b.entries))
    rows = []
    for label in sorted(labels, key=lambda lb: -means[lb][1] if lb in means else 0.0):
        cells = [Cell(label, label)]
        for b in played:
            entry = next((e for e in b.entries if e.label == label), None)
            cells.append(_accuracy(entry, b.verdicts.get(label)) if entry else Cell())
        for i in (0, 1) if several else (1,):
            mean = means[label][i] if label in means else None
            cell = number(mean, ".1f", 1e-2)
            cells.append(Cell(cell.text, cell.value, best=mean is not None and mean == tops[i]))
        rows.append(tuple(cells))
    return Table("Test accuracy, %, on every data set", tuple(heads), tuple(rows))


def mean_accuracies(played: Sequence[Board]) -> dict[str, tuple[float, float]]:
    """Average the accuracy of the methods that were tested on every data set.

    Args:
        played: The data sets of one backbone.

    Returns:
        By label, the mean of the means of the groups and the mean over data sets.
    """
    groups = {b.data: b.group for b in played}
    found: dict[str, dict[str, float]] = {}
    for b in played:
        for e in b.entries:
            if e.accuracy is not None:
                found.setdefault(e.label, {})[b.data] = e.accuracy
    return {
        label: averages(by_data, groups)
        for label, by_data in found.items()
        if len(by_data) == len(played)
    }


def memory_table(entries: Sequence[Entry]) -> Table:
    """Tell what the planned peak of each method is made of.

    Args:
        entries: One per method.

    Returns:
        One row per method, largest last.
    """
    parts = list(dict.fromkeys(p for e in entries for p in parts_of(e)))
    ranked = sorted(entries, key=lambda e: e.planned or 0)
    return Table(
        "Parts of the planned peak of a step, MiB",
        (Column("method", False), *(Column(p) for p in parts), Column("peak")),
        tuple(
            (
                Cell(e.label, e.label),
                *(number(parts_of(e).get(p), ",.1f", 2**20) for p in parts),
                number(e.planned, ",.1f", 2**20),
            )
            for e in ranked
        ),
    )


def parts_of(entry: Entry) -> Mapping[str, int]:
    """Take the planned peak apart.

    Args:
        entry: A method with a finished row.

    Returns:
        Bytes by part.
    """
    largest = max(entry.runs, key=lambda r: r["planned"]["peak_bytes"])
    return largest["planned"]["parts"]


def _accuracy(entry: Entry, verdict: Verdict | None) -> Cell:
    if entry.accuracy is None or verdict is None:
        failed = bool(entry.result.failed)
        return Cell("failed" if failed else "unfinished", note=entry.missing)
    spread = "" if entry.spread is None else f" ± {100 * entry.spread:.1f}"
    each = ", ".join(f"{100 * a:.2f}" for a in entry.accuracies)
    note = f"seeds: {each}"
    if not verdict.best:
        note += f"; against the best p = {verdict.p:.2g}, {verdict.test}"
    text = f"{100 * entry.accuracy:.1f}{spread}"
    return Cell(text, entry.accuracy, note, verdict.best, verdict.close)

"""The tables of a report as data, for HTML, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..targets.words import word
from .cells import Cell, Column, Table, number
from .compare import NO_TEST, Verdict, averages, judge
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
    metric = word(board.entries[0].metric)
    columns = [f"test {metric}, %", "trained parameters", "planned peak, MiB", "measured peak, MiB"]
    columns += ["ms per step", "learning rate"]
    return Table(
        f"{board.data}: test {metric} and what it costs",
        (Column("method", False), *map(Column, columns), Column("seeds", False)),
        tuple(
            (
                Cell(e.label, e.label),
                _accuracy(e, board.verdicts),
                number(e.trained, ",d"),
                number(e.planned, ",.1f", 2**20),
                number(e.measured, ",.1f", 2**20),
                number(e.seconds, ",.1f", 1e-3),
                number(e.result.rate, "g"),
                Cell(e.status, e.status),
            )
            for e in board.entries
        ),
        _notes(board.entries),
    )


def scores_table(board: Board) -> Table | None:
    """Tell the other scores of each method on the test images, means over seeds.

    Args:
        board: The methods on a data set.

    Returns:
        One row per method that has some; None where none has.
    """
    tested = [e for e in board.entries if e.runs]
    names = dict.fromkeys(n for e in tested for r in e.runs for n in r.test_scores or ())
    names = {n: None for n in names if n not in {e.metric for e in tested} and not _of_objects(n)}
    if not names:
        return None
    columns = [Column("method", False), *(Column(word(n)) for n in names)]
    fitted = any(r.temperature is not None for e in tested for r in e.runs)
    columns += [Column("temperature")] if fitted else []
    rows = tuple(
        (
            Cell(e.label, e.label),
            *(number(e.score(n), ".4g") for n in names),
            *((number(_mean_temperature(e), ".3g"),) if fitted else ()),
        )
        for e in tested
    )
    return Table(f"{board.data}: other scores on the test images", tuple(columns), rows)


def _of_objects(score: str) -> bool:
    """Whether a score is in the table of average precision."""
    return score.startswith(("box_map", "mask_map"))


def _mean_temperature(entry: Entry) -> float | None:
    known = [r.temperature for r in entry.runs if r.temperature is not None]
    return fmean(known) if known else None


def _notes(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Say what is missing, once for all methods that miss the same."""
    by_reason: dict[str, list[str]] = {}
    for e in entries:
        if e.missing:
            by_reason.setdefault(e.missing, []).append(e.label)
    return tuple(f"{', '.join(labels)}: {reason}" for reason, labels in by_reason.items())


def overview_table(played: Sequence[Board]) -> Table:
    """Tell what each method reached on every data set, and on average.

    Args:
        played: The data sets of one backbone.

    Returns:
        One row per method, by falling mean over data sets, those with a gap last.
    """
    means = mean_accuracies(played)
    kinds = ["mean of groups", "mean of data sets"] if grouped(played) else ["mean of data sets"]
    kinds = kinds if means else []
    shared = "averages" if any(b.group for b in played) else ""
    heads = [Column("method", False), *(Column(b.data, group=b.group) for b in played)]
    heads += [Column(kind, group=shared) for kind in kinds]
    rows = []
    for label, known in _by_completeness(played):
        cells = [Cell(label, label)]
        for b in played:
            entry = known.get(b.data)
            cells.append(_accuracy(entry, b.verdicts) if entry else Cell())
        for kind in kinds:
            mean = means[label][kind] if label in means else None
            cells.append(number(mean, ".1f", 1e-2))
        rows.append(tuple(cells))
    metrics = list(dict.fromkeys(word(e.metric) for b in played for e in b.entries if e.runs))
    title = f"Test {' or '.join(metrics)}, %, on every data set"
    return Table(title, tuple(heads), tuple(rows))


def _by_completeness(played: Sequence[Board]) -> list[tuple[str, dict[str, Entry]]]:
    """Give the entries of each method by data set, the most complete and best method first."""
    found: dict[str, dict[str, Entry]] = {}
    for b in played:
        for e in b.entries:
            found.setdefault(e.label, {})[b.data] = e

    def rank(item: tuple[str, dict[str, Entry]]) -> tuple[int, float]:
        known = [e.accuracy for e in item[1].values() if e.accuracy is not None]
        return -len(known), -fmean(known) if known else 0.0

    return sorted(found.items(), key=rank)


def grouped(played: Sequence[Board]) -> bool:
    """Tell whether a mean of groups means something.

    Args:
        played: The data sets of one backbone.

    Returns:
        Whether there are several groups, and every data set is in one.
    """
    groups = {b.group for b in played}
    return len(groups) > 1 and "" not in groups


def mean_accuracies(played: Sequence[Board]) -> dict[str, dict[str, float]]:
    """Average the accuracy of the methods that were tested on every data set.

    Args:
        played: The data sets of one backbone.

    Returns:
        By label, the mean of the means of the groups and the mean over data sets, by name.
    """
    groups = {b.data: b.group for b in played}
    found = {}
    for label, known in _by_completeness(played):
        by_data = {d: e.accuracy for d, e in known.items() if e.accuracy is not None}
        if len(by_data) == len(played):
            of_groups, of_data = averages(by_data, groups)
            found[label] = {"mean of groups": of_groups, "mean of data sets": of_data}
    return found


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
    """Split the planned peak into its parts.

    Args:
        entry: A method with a finished row.

    Returns:
        Bytes by part.
    """
    largest = max(entry.runs, key=lambda r: r.planned.peak_bytes)
    return largest.planned.parts


def _accuracy(entry: Entry, verdicts: Mapping[str, Verdict]) -> Cell:
    verdict = verdicts.get(entry.label)
    if entry.accuracy is None or verdict is None:
        failed = bool(entry.result.failed)
        return Cell("failed" if failed else "unfinished", note=entry.missing)
    spread = "" if entry.spread is None else f" ± {100 * entry.spread:.1f}"
    each = ", ".join(f"{100 * a:.2f}" for a in entry.accuracies)
    note = f"seeds: {each}"
    if not verdict.best:
        note += f"; against the best p = {verdict.p:.2g}, {verdict.test}"
    text = f"{100 * entry.accuracy:.1f}{spread}"
    compared = len(verdicts) > 1 and verdict.test != NO_TEST
    return Cell(text, entry.accuracy, note, verdict.best and compared, verdict.close)

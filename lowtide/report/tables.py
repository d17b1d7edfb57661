"""The tables, as data: what HTML, Markdown and CSV write each in their way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .compare import Verdict, averages, judge
from .repeat import repeat
from .rows import Entry, Summary


@dataclass(frozen=True)
class Cell:
    """One field of a table.

    Attributes:
        text: What is read.
        value: What it is sorted by; None where there is nothing.
        note: What is said about it on demand.
        best: Whether it is the best of its column.
        close: Whether it cannot be told from the best.
        shade: Depth of its colour in a heat map, 0 to 9; -1 for none.
    """

    text: str = ""
    value: float | str | None = None
    note: str = ""
    best: bool = False
    close: bool = False
    shade: int = -1


@dataclass(frozen=True)
class Column:
    """The head of a column.

    Attributes:
        name: What stands in it.
        numeric: Whether it holds numbers.
        group: What it shares with its neighbours.
        code: Whether it holds commands.
    """

    name: str
    numeric: bool = True
    group: str = ""
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Its caption.
        columns: Their heads.
        rows: Their cells, the first of which names the row.
        notes: What is said below it.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


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
                _number(e.trained, ",d"),
                _number(e.planned, ",.1f", 2**20),
                _number(e.measured, ",.1f", 2**20),
                _number(e.seconds, ",.1f", 1e-3),
                _number(e.result.rate, "g"),
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
            cell = _number(mean, ".1f", 1e-2)
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
                *(_number(parts_of(e).get(p), ",.1f", 2**20) for p in parts),
                _number(e.planned, ",.1f", 2**20),
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


def provenance_table(entries: Sequence[Entry]) -> Table:
    """Tell where every number is from.

    Args:
        entries: All that is reported.

    Returns:
        One row per finished row, with the command that repeats it.
    """
    words = ("method", "backbone", "data")
    columns = [Column(w, False) for w in words]
    columns += [Column("seed"), Column("learning rate"), Column("test accuracy, %")]
    columns += [Column("command", False, code=True)]
    more = ["rates tried: validation accuracy, %", "lowtide, commit", "torch, timm, Python"]
    more += ["device", "finished", "data fingerprint", "pre-processing", "folder"]
    columns += [Column(w, False) for w in more]
    rows = []
    for e in entries:
        for run, folder in zip(e.result.runs, e.result.folders, strict=True):
            config, env, data = run["config"], run["environment"], run["data"]
            versions = ", ".join(str(env.get(k, "")) for k in ("torch", "timm", "python"))
            device = f"{env.get('device_name', '')}, {env.get('threads', '')} threads"
            rows.append((
                *(Cell(t, t) for t in (e.label, e.model, e.data)),
                _number(config["seed"], "d"),
                _number(config["lr"], "g"),
                _number(run["test_accuracy"], ".2f", 1e-2),
                _text(command(run)),
                _text(tried(e)),
                _text(f"{env.get('lowtide', '')}, {env.get('commit') or 'no commit'}"),
                _text(versions),
                _text(device),
                _text(str(env.get("finished", ""))),
                _text(data["fingerprint"][:12], data["fingerprint"]),
                _text(preprocessing(run)),
                _text(str(folder)),
            ))
    return Table("Every finished row", tuple(columns), tuple(rows))


def tried(entry: Entry) -> str:
    """Write the learning rates that were tried.

    Args:
        entry: A method on a data set.

    Returns:
        Each with its validation accuracy in percent; empty where there was no choice.
    """
    return ", ".join(f"{lr:g}: {100 * a:.1f}" for lr, a in entry.result.searched.items())


def preprocessing(run: Summary) -> str:
    """Write how images became inputs.

    Args:
        run: A finished row.

    Returns:
        Its pre-processing in one line.
    """
    return ", ".join(
        f"{name} {' '.join(map(str, v)) if isinstance(v, list) else v}"
        for name, v in run["preprocessing"].items()
    )


def command(run: Summary) -> str:
    """Write the command that repeats a row.

    Args:
        run: A finished row.

    Returns:
        The command; where this version does not know its options, why there is none.
    """
    processes: Any = run["environment"].get("processes", 1)
    try:
        return repeat(run["config"], processes if isinstance(processes, int) else 1)
    except InputError as e:
        return f"made by another version: {e}"


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


def _number(value: float | None, form: str, unit: float | None = None) -> Cell:
    if value is None:
        return Cell()
    return Cell(format(value / unit if unit else value, form), value)


def _text(text: str, note: str = "") -> Cell:
    return Cell(text, text, note)

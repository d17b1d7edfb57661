"""Read finished rows back, for the report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from ..errors import InputError
from ..training.loop import SUMMARY
from ..training.summary import RunSummary, read_summary
from .suite import SUITE, Cell, Row, Suite

FAILED = "failed.txt"

Read = Callable[[Path], RunSummary]
"""Reads a summary: `read_summary`, or what remembers its answers."""


@dataclass(frozen=True)
class Result:
    """The rows of one method on one data set.

    Attributes:
        suite: Name of the suite; empty for runs that belong to none.
        data: Name of the data set.
        group: Name of its group, or empty.
        label: Name of the method.
        searched: Validation accuracy by learning rate; empty where none was chosen.
        rate: The learning rate of `runs`; None while it is open.
        runs: Summaries of finished test rows, one per seed.
        folders: Where each of `runs` lies.
        planned: Number of test rows the suite asks for.
        failed: Why rows failed, by folder.
    """

    suite: str
    data: str
    group: str
    label: str
    searched: Mapping[float, float]
    rate: float | None
    runs: tuple[RunSummary, ...]
    folders: tuple[Path, ...]
    planned: int
    failed: Mapping[Path, str]

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy, or the score of another task, of each row that was tested."""
        return [a for r in self.runs if (a := r.tested) is not None]

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy over seeds."""
        return mean(self.accuracies) if self.accuracies else None

    @property
    def spread(self) -> float | None:
        """Standard deviation of test accuracy over seeds (of a sample, n - 1)."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None


def summary_of(folder: Path, read: Read = read_summary) -> RunSummary | None:
    """Read what a finished row says of itself.

    Args:
        folder: The run folder.
        read: Reads the file.

    Returns:
        Its summary; None where it is not finished.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / SUMMARY
    if not path.exists():
        return None
    return read(path)


def chosen_rate(cell: Cell, output: Path, read: Read = read_summary) -> float | None:
    """Choose a cell's learning rate by accuracy on val, the first of equals.

    Args:
        cell: The cell.
        output: Where the suite's rows lie.
        read: Reads a summary.

    Returns:
        The rate; None while a search row is unfinished or failed.

    Raises:
        InputError: There are several to choose from and nothing to validate on.
    """
    if not cell.searches:
        return next(iter(cell.tests))
    scores = {}
    for lr, row in cell.searches.items():
        summary = summary_of(output / row.folder, read)
        if summary is None:
            return None
        if summary.validated is None:
            raise InputError(
                f"{cell.data} has no validation images to choose among {len(cell.searches)}"
                " learning rates; give one lr"
            )
        scores[lr] = summary.validated
    return max(scores, key=lambda lr: scores[lr])


def chosen_tests(cell: Cell, output: Path) -> tuple[Row, ...]:
    """List a cell's test rows.

    Args:
        cell: The cell.
        output: Where the suite's rows lie.

    Returns:
        Those at the chosen learning rate; none while it is open.
    """
    rate = chosen_rate(cell, output)
    return () if rate is None else cell.tests[rate]


def read_results(folder: Path, read: Read | None = None) -> list[Result]:
    """Read the rows of a suite, or a run, or a folder of runs.

    Args:
        folder: What `lowtide bench` or `lowtide train` left, or a folder that holds such run
            folders.
        read: Reads a summary; by default each is read once.

    Returns:
        Results in the order of the suite; runs without one by folder name, one result for each
        data set, method and policy, that of its seeds taken together.

    Raises:
        InputError: Nothing in the folder was left by lowtide.
    """
    read = read or functools.cache(read_summary)
    if (folder / SUITE).is_file():
        suite = Suite.read(folder)
        return [_of_cell(suite.name, cell, folder, read) for cell in suite.cells]
    found = sorted(p.parent for p in folder.glob(f"**/{SUMMARY}"))
    if not found:
        raise InputError(f"{folder} holds no {SUITE} and no finished run ({SUMMARY})")
    together: dict[str, list[tuple[Path, RunSummary]]] = {}
    for path in found:
        summary = read(path / SUMMARY)
        together.setdefault(summary.config.identity, []).append((path, summary))
    return [_of_runs(*zip(*runs, strict=True)) for runs in together.values()]


def _of_cell(suite: str, cell: Cell, output: Path, read: Read) -> Result:
    searched = {
        lr: summary.validated
        for lr, row in cell.searches.items()
        if (summary := summary_of(output / row.folder, read)) and summary.validated is not None
    }
    rate = chosen_rate(cell, output, read)
    tests = () if rate is None else cell.tests[rate]
    rows = [*cell.searches.values(), *tests]
    folders = [output / row.folder for row in tests]
    finished = [(f, s) for f in folders if (s := summary_of(f, read))]
    return Result(
        suite=suite,
        data=cell.data,
        group=cell.group,
        label=cell.label,
        searched=searched,
        rate=rate,
        runs=tuple(s for _, s in finished),
        folders=tuple(f for f, _ in finished),
        planned=len(next(iter(cell.tests.values()))),
        failed={
            path.parent: path.read_text(encoding="utf-8", errors="replace").strip()
            for row in rows
            if (path := output / row.folder / FAILED).is_file()
        },
    )


def _of_runs(folders: tuple[Path, ...], runs: tuple[RunSummary, ...]) -> Result:
    config = runs[0].config
    policy = "" if config.policy == "exact" else f", {config.policy}"
    return Result(
        suite="",
        data=Path(config.data).name,
        group="",
        label=config.method.name + policy,
        searched={},
        rate=config.lr,
        runs=runs,
        folders=folders,
        planned=len(folders),
        failed={},
    )

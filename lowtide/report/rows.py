"""The entries of a report: every method on every data set, read and checked."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev

from ..bench.results import Read, Result, read_results, summary_of
from ..bench.suite import SUITE
from ..data.vtab import GROUPS, group_of
from ..errors import InputError
from ..training.loop import SUMMARY
from ..training.summary import RunSummary, read_summary


@dataclass(frozen=True)
class Entry:
    """One method on one data set.

    Attributes:
        result: Its rows.
        model: The backbone; empty where no row is finished.
        group: Group of the data set, or empty.
        label: Name of the method, unlike any other on the same backbone and data.
        search: The row that tried the chosen learning rate, which holds the validation accuracy of
            every epoch; None where there was nothing to choose.
    """

    result: Result
    model: str
    group: str
    label: str
    search: RunSummary | None = None

    @property
    def data(self) -> str:
        """Name of the data set."""
        return self.result.data

    @property
    def runs(self) -> tuple[RunSummary, ...]:
        """Finished rows that were tested."""
        return tuple(r for r in self.result.runs if r.tested is not None)

    @property
    def metric(self) -> str:
        """The score that is reported as accuracy is: that of the task of its rows."""
        return next((r.metric for r in self.runs), "accuracy")

    def score(self, name: str) -> float | None:
        """Average another score of the test images over seeds.

        Args:
            name: Of the score.

        Returns:
            Its mean; None where not all rows have it.
        """
        known = [(r.test_scores or {}).get(name) for r in self.runs]
        found = [value for value in known if value is not None]
        return fmean(found) if found and len(found) == len(known) else None

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy of each seed."""
        return self.result.accuracies

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy over seeds."""
        return fmean(self.accuracies) if self.runs else None

    @property
    def spread(self) -> float | None:
        """Standard deviation of test accuracy over seeds (of a sample, n - 1)."""
        return stdev(self.accuracies) if len(self.runs) > 1 else None

    @property
    def images(self) -> int:
        """Test images, the same for every seed."""
        return max((r.data.test for r in self.runs), default=0)

    @property
    def trained(self) -> int | None:
        """Trained parameters."""
        return max((r.trainable_parameters for r in self.runs), default=None)

    @property
    def planned(self) -> int | None:
        """Planned peak of a step, bytes."""
        return max((r.planned.peak_bytes for r in self.runs), default=None)

    @property
    def measured(self) -> int | None:
        """Measured peak of a step, bytes; of several rows the largest."""
        peaks = [p for r in self.runs if (p := r.measured_peak_bytes)]
        return max(peaks, default=None)

    @property
    def seconds(self) -> float | None:
        """Time of a step, the median of the rows'."""
        times = [t for r in self.runs if (t := r.step_seconds)]
        return median(times) if times else None

    @property
    def status(self) -> str:
        """How many of the entry's rows are finished."""
        done, planned = len(self.runs), self.result.planned
        return f"{planned}" if done == planned else f"{done} of {planned}"

    @property
    def missing(self) -> str:
        """Why rows are missing; empty where none is."""
        result = self.result
        said = []
        if result.failed:
            reasons = dict.fromkeys(" ".join(r.split()) for r in result.failed.values())
            rows = "1 row" if len(result.failed) == 1 else f"{len(result.failed)} rows"
            said.append(f"{rows} failed: {'; '.join(reasons)}")
        elif result.rate is None:
            said.append(f"learning rate not chosen yet, {len(result.searched)} tried")
        elif len(result.runs) < result.planned:
            done = f"{len(result.runs)} of {result.planned} seeds finished"
            said.append(done if result.runs else "not finished yet")
        if untested := len(result.runs) - len(self.runs):
            said.append(f"not tested: {untested} of {result.planned}")
        return "; ".join(said)


def gather(folders: Iterable[Path]) -> list[Entry]:
    """Read the runs and suites of a report.

    Args:
        folders: Suites, runs, or folders that hold some.

    Returns:
        One entry per backbone, data set and method, in the order they are met; of each backbone
        VTAB-1k's groups first.

    Raises:
        InputError: A folder holds nothing, or what it holds is damaged.
    """
    results = []
    read = functools.cache(read_summary)
    for folder in {Path(f).resolve(): Path(f) for f in folders}.values():
        found = sorted(_sources(folder))
        if not found:
            raise InputError(f"{folder} holds no {SUITE} and no finished run ({SUMMARY})")
        for source in found:
            for path in source.glob(f"**/{SUMMARY}"):
                read(path)
            results += read_results(source, read)
    entries = _named_apart([_entry(r, results, read) for r in results])
    if not any(e.result.runs or e.result.failed for e in entries):
        raise InputError("no row of these suites is finished yet: lowtide bench runs them")
    models = list(dict.fromkeys(e.model for e in entries))
    groups = [*GROUPS, *dict.fromkeys(e.group for e in entries if e.group), ""]
    return sorted(entries, key=lambda e: (models.index(e.model), groups.index(e.group)))


def _sources(folder: Path) -> list[Path]:
    """Find the suites in a folder, and the folders of runs beside them."""
    if not folder.is_dir() or (folder / SUITE).is_file() or (folder / SUMMARY).is_file():
        held = any((folder / name).is_file() for name in (SUITE, SUMMARY))
        return [folder] if held else []
    if not any(folder.glob(f"**/{SUITE}")):
        return [folder] if any(folder.glob(f"**/{SUMMARY}")) else []
    return [s for inner in folder.iterdir() for s in _sources(inner)]


def _entry(result: Result, results: Sequence[Result], read: Read) -> Entry:
    models = [r.config.model for r in result.runs] or [
        run.config.model for r in results if r.suite == result.suite for run in r.runs
    ]
    return Entry(
        result=result,
        model=models[0] if models else "",
        group=result.group or group_of(result.data) or "",
        label=result.label,
        search=_search(result, read),
    )


def _search(result: Result, read: Read) -> RunSummary | None:
    """Find the row that tried the learning rate which was chosen: it lies beside the test rows."""
    for folder in result.folders[:1] if result.searched else ():
        for path in sorted(folder.parent.glob(f"*/{SUMMARY}")):
            found = summary_of(path.parent, read)
            if found and found.config.skip_test and found.config.lr == result.rate:
                return found
    return None


def _named_apart(entries: list[Entry]) -> list[Entry]:
    """Give methods of one name on the same backbone and data names of their own."""
    # Rows of several suites are told apart by the suite, others by the options that differ.
    counts = Counter((e.model, e.data, e.label) for e in entries)
    twice = {(model, label) for (model, _, label), count in counts.items() if count > 1}
    for model, label in sorted(twice):
        same = [i for i, e in enumerate(entries) if (e.model, e.label) == (model, label)]
        if len({entries[i].result.suite for i in same}) > 1:
            names = [entries[i].result.suite or "no suite" for i in same]
        else:
            names = _differences([entries[i] for i in same])
        for i, name in zip(same, names, strict=True):
            entries[i] = replace(entries[i], label=f"{label} ({name})" if name else label)
    met: Counter[tuple[str, str, str]] = Counter()
    for i, e in enumerate(entries):
        met[e.model, e.data, e.label] += 1
        if (number := met[e.model, e.data, e.label]) > 1:
            entries[i] = replace(e, label=f"{e.label} #{number}")
    return entries


def _differences(entries: Sequence[Entry]) -> list[str]:
    """Write the options in which entries differ."""
    flat = [_flat(e.result.runs[0].config.completed()) if e.result.runs else {} for e in entries]
    names = [
        name
        for name in dict.fromkeys(n for options in flat for n in options)
        if name not in {"data", "seed"} and len({json.dumps(o.get(name)) for o in flat}) > 1
    ]
    return [", ".join(f"{n} {o[n]}" for n in names if n in o) for o in flat]


def _flat(options: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in options.items():
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found

"""Write the tables and plots of docs/results.md from the finished rows in results/.

    python -m benchmarks.results

Rows come from the suites in `benchmarks/suites`; the first lines of each say how to run it. Every
suite's full report is written beside its rows as `report.md`; `lowtide report results/SUITE` makes
the page.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean

from lowtide.bench import Result, read_results
from lowtide.bench.suite import SUITE
from lowtide.report import write_report
from lowtide.targets.words import word

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
FIGURES = PAGE.parent / "figures"
COSTS = {"trained": "trained parameters", "peak": "planned peak, MiB"}


def main() -> None:
    """Write every suite's report and its part of the page."""
    os.chdir(ROOT)  # folders stand in the reports as they are given
    for suite in sorted(p.parent for p in Path("results").glob(f"*/{SUITE}")):
        write_report([suite], suite / "report.md")
        parts = []
        for data, found in groupby(read_results(suite), lambda r: r.data):
            if finished := [r for r in found if r.runs]:
                parts += _part(suite.name, data, sorted(finished, key=_accuracy, reverse=True))
        insert(PAGE, suite.name, "\n\n".join(parts))


def _accuracy(result: Result) -> float:
    return result.accuracy or 0.0


def _part(suite: str, data: str, found: list[Result]) -> list[str]:
    """A heading, a table and the plots of one data set."""
    parts = [f"### {data}", _table(found)]
    for cost, axis in COSTS.items():
        name = f"{suite}-{data}-{cost}.svg"
        points = [(r.label, costs(r)[cost], 100 * _accuracy(r)) for r in found]
        metric = word(found[0].runs[0].metric)
        _plot(points, axis, metric, FIGURES / name)
        parts.append(f"![Test {metric} against {axis} on {data}](figures/{name})")
    return parts


def costs(result: Result) -> dict[str, float]:
    """Trained parameters, the classifier's included, and the planned peak in MiB."""
    run = result.runs[0]
    return {
        "trained": run.trainable_parameters,
        "peak": run.planned.peak_bytes / 2**20,
    }


def _table(found: Sequence[Result]) -> str:
    metric = word(found[0].runs[0].metric)
    heads = ["method", f"test {metric}", "seeds", "validation", "lr", "trained"]
    heads += ["planned peak MiB", "minutes"]
    rows = []
    for r in found:
        spread = "" if r.spread is None else f" ± {r.spread:.3f}"
        rows.append([
            r.label,
            f"{_accuracy(r):.3f}{spread}",
            str(len(r.runs)),
            f"{r.searched[r.rate]:.3f}" if r.rate in r.searched else "",
            f"{r.rate:g}",
            f"{costs(r)['trained']:,}",
            f"{costs(r)['peak']:.1f}",
            f"{mean(sum(e.seconds for e in run.history) for run in r.runs) / 60:.1f}",
        ])
    columns = zip(heads, ["---"] * len(heads), *rows, strict=True)
    told = [c for c in columns if any(c[2:])]  # nothing validated, no column
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*told, strict=True))


def _plot(points: list[tuple[str, float, float]], axis: str, metric: str, path: Path) -> None:
    """Draw a score against a cost, and the line no method is above and left of."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lowtide"  # the same plot is the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    front: list[tuple[float, float]] = []
    for label, cost, accuracy in sorted(points, key=lambda p: (p[1], -p[2])):
        axes.plot(cost, accuracy, "o", color="tab:blue")
        axes.annotate(label, (cost, accuracy), (4, 4), textcoords="offset points", fontsize=8)
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    axes.step(*zip(*front, strict=True), where="post", color="tab:orange", zorder=0)
    axes.set(xlabel=axis, ylabel=f"test {metric}, %", xscale="log")
    axes.grid(alpha=0.3)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def insert(page: Path, mark: str, text: str) -> None:
    """Replace what stands between two marks on a page.

    Args:
        page: The page.
        mark: Their name.
        text: What to put there.
    """
    start, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, _, rest = page.read_text().partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no marks for {mark}")
    page.write_text(before + start + text + "\n" + end + after)


if __name__ == "__main__":
    main()

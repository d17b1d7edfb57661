"""Train every method with the same budget, or write tables and Pareto plots from finished runs.

    python -m benchmarks.methods run --coil VTAB_LIKE/coil20_pose
    python -m benchmarks.methods report

The bundled backbone on digits and on COIL-20's poses. For each method three learning rates are
tried with seed 0; the one with the best validation accuracy is run with two more seeds, and the
model of the last epoch is tested. What a finished run says of itself is kept in `results/methods`,
so an interrupted command continues, on another machine too;
`--part 0/2` and `--part 1/2` share the rows between two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from lowtide import METHODS
from lowtide.config import RunConfig
from lowtide.graft import Method
from lowtide.train import CONFIG, train
from scripts.demo import write_digits

MODEL = "vit_micro_patch4_32"
EPOCHS = {"digits": 2, "coil20_pose": 5}
BATCH = 16
WARMUP = 0.2
"""Epochs."""
RATES = (1e-3, 4e-3, 1.6e-2)
OVERWRITING = {"full": 0.1, "partial": 0.1}
"""Methods that move pre-trained weights themselves take a tenth of every learning rate."""
SEEDS = (0, 1, 2)
ROOT = Path(__file__).parents[1]
ROWS = ROOT / "results" / "methods"
PAGE = ROOT / "docs" / "results.md"
FIGURES = PAGE.parent / "figures"


class Row(NamedTuple):
    """One line of the table."""

    label: str
    method: Method
    policy: str = "exact"


def rows() -> list[Row]:
    """Every method of the registry that fits a ViT, with the variants the papers compare."""
    variants = {
        "vpt": (("VPT-shallow", {"depth": "shallow"}), ("VPT-deep", {})),
        "dtl": (("DTL", {}), ("DTL+", {"plus": True})),
    }
    names = {
        "mlp_head": "MLP-4",
        "partial": "Partial-1",
        "fact_tt": "FacT-TT",
        "fact_tk": "FacT-TK",
    }
    skipped = {"conv_adapter"}  # stands beside convolutions, and a ViT has none
    found = []
    for name in sorted(METHODS.keys() - skipped):
        for label, options in variants.get(name, ((names.get(name, name), {}),)):
            found.append(Row(label, METHODS[name](**options)))
    return [*found, Row("s2a, tight", METHODS["s2a"](), "tight")]


def rates(row: Row) -> tuple[float, ...]:
    """Learning rates a row is tried with."""
    name = type(row.method).__module__.rpartition(".")[2]
    return tuple(OVERWRITING.get(name, 1.0) * r for r in RATES)


def name_of(data: str, row: Row, rate: float, seed: int) -> str:
    """Name of a run."""
    return f"{data}-{row.label.replace(', ', '-')}-{rate:g}-{seed}"


def summary(name: str) -> dict | None:
    """What a finished run says of itself."""
    file = ROWS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def chosen(data: str, row: Row) -> float | None:
    """The learning rate with the best validation accuracy; None before all are tried."""
    tried = {r: summary(name_of(data, row, r, SEEDS[0])) for r in rates(row)}
    if not all(tried.values()):
        return None
    return max(tried, key=lambda r: tried[r]["val_accuracy"])


def run(args: argparse.Namespace) -> None:
    """Train what is missing of this part."""
    part, parts = map(int, args.part.split("/"))
    digits = _digits(args.output)
    for data, source in (("digits", digits), ("coil20_pose", args.coil)):
        for row in rows()[part::parts]:
            for rate in rates(row):
                _train(args.output, data, source, row, rate, SEEDS[0])
    for seed in SEEDS[1:]:
        for data, source in (("digits", digits), ("coil20_pose", args.coil)):
            for row in rows()[part::parts]:
                _train(args.output, data, source, row, chosen(data, row), seed)


def _digits(output: Path) -> Path:
    """Write the digits unless they are there; another process may be doing the same."""
    digits = output / "data" / "digits"
    if not digits.exists():
        mine = output / "data" / f"digits-{os.getpid()}"
        write_digits(mine)
        try:
            mine.rename(digits)
        except OSError:
            shutil.rmtree(mine)
    return digits


def _train(output: Path, data: str, source: Path, row: Row, rate: float | None, seed: int) -> None:
    assert rate is not None
    name = name_of(data, row, rate, seed)
    if summary(name):
        return
    path = output / name
    config = RunConfig(
        model=MODEL,
        data=str(source),
        method=row.method,
        policy=row.policy,
        epochs=EPOCHS[data],
        batch_size=BATCH,
        warmup_epochs=WARMUP,
        lr=rate,
        seed=seed,
        device="cpu",
    )
    print(path, flush=True)
    said = train(config, path, continues=(path / CONFIG).exists())
    said["config"]["data"] = said["data"]["root"] = data
    ROWS.mkdir(parents=True, exist_ok=True)
    unfinished = ROWS / f"{name}.{os.getpid()}"
    unfinished.write_text(json.dumps(said, indent=1) + "\n")
    unfinished.rename(ROWS / f"{name}.json")


class Result(NamedTuple):
    """What is known of one row on one data set."""

    label: str
    rate: float
    runs: list[dict]

    @property
    def accuracy(self) -> float:
        """Mean test accuracy over seeds."""
        return mean(r["test_accuracy"] for r in self.runs)

    @property
    def trained(self) -> int:
        """Trained parameters, the classifier included."""
        return self.runs[0]["trainable_parameters"]

    @property
    def peak(self) -> float:
        """Planned peak in MiB."""
        return self.runs[0]["planned"]["peak_bytes"] / 2**20


def results(data: str) -> Iterator[Result]:
    """Read the rows whose learning rate is chosen."""
    for row in rows():
        rate = chosen(data, row)
        if rate is not None:
            found = [summary(name_of(data, row, rate, s)) for s in SEEDS]
            yield Result(row.label, rate, [r for r in found if r])


def report(args: argparse.Namespace) -> None:
    """Write the tables and draw the plots."""
    parts = []
    for data in EPOCHS:
        found = sorted(results(data), key=lambda r: -r.accuracy)
        if not found:
            continue
        parts += [f"### {data}", _table(found)]
        for name, axis in (("trained", "trained parameters"), ("peak", "planned peak, MiB")):
            figure = f"{data}-{name}.svg"
            _plot(found, name, axis, FIGURES / figure)
            parts.append(f"![Accuracy against {axis} on {data}](figures/{figure})")
    start, end = "<!-- methods -->\n", "<!-- end of methods -->"
    before, _, rest = PAGE.read_text().partition(start)
    after = rest.partition(end)[2]
    PAGE.write_text(before + start + "\n\n".join(parts) + "\n" + end + after)
    print("\n\n".join(parts))


def _table(found: list[Result]) -> str:
    lines = [
        "| method | test accuracy | seeds | learning rate | trained | planned peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for r in found:
        each = [s["test_accuracy"] for s in r.runs]
        spread = f" ± {stdev(each):.3f}" if len(each) > 1 else ""
        cells = (
            r.label,
            f"{r.accuracy:.3f}{spread}",
            len(each),
            f"{r.rate:g}",
            f"{r.trained:,}",
            f"{r.peak:.1f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _plot(found: list[Result], name: str, axis: str, path: Path) -> None:
    """Draw accuracy against a cost, and the line no method is above and left of."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lowtide"  # the same plot is the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    front, best = [], -1.0
    for r in sorted(found, key=lambda r: (getattr(r, name), -r.accuracy)):
        cost = getattr(r, name)
        axes.plot(cost, 100 * r.accuracy, "o", color="tab:blue")
        axes.annotate(
            r.label, (cost, 100 * r.accuracy), (4, 4), textcoords="offset points", fontsize=8
        )
        if r.accuracy > best:
            best = r.accuracy
            front.append((cost, 100 * best))
    axes.step(*zip(*front, strict=True), where="post", color="tab:orange", zorder=0)
    axes.set(xlabel=axis, ylabel="test accuracy, %", xscale="log")
    axes.grid(alpha=0.3)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Parse and run one of the two verbs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run")
    runner.add_argument("--coil", type=Path, required=True)
    runner.add_argument("--output", type=Path, default=ROOT / "runs" / "methods")
    runner.add_argument("--part", default="0/1")
    runner.set_defaults(verb=run)
    reporter = verbs.add_parser("report")
    reporter.set_defaults(verb=report)
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()

"""Fine-tune the bundled backbone on scikit-learn's digits with six methods; table, picture, report.

The digits, 1,797 scans of 8 x 8 pixels, come with scikit-learn: nothing is downloaded. They are
written as PNG files in train, val and test folders, as a user's own images would be, and every
method gets the same recipe. Run folders, `picture.svg` and `report.html` are left in `runs/demo`.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.table import Table
from write_digits import write_digits

from lowtide.methods import METHODS
from lowtide.report import write_report
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.training.summary import RunSummary

matplotlib.use("svg")
from matplotlib import pyplot

ROWS = [
    ("linear", "linear", "exact"),
    ("bias", "bias", "exact"),
    ("LoRA", "lora", "exact"),
    ("S2A", "s2a", "exact"),
    ("S2A, tight", "s2a", "tight"),
    ("full", "full", "exact"),
]


def main() -> None:
    """Run the six methods and print what each cost and reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    console = Console()
    shutil.rmtree(args.output / "digits", ignore_errors=True)
    write_digits(args.output / "digits")
    config = RunConfig(
        model="vit_micro_patch4_32",
        data=str(args.output / "digits"),
        epochs=args.epochs,
        lr=3e-3,
        warmup_epochs=1.0,
        keep="last",
        device="cpu",
    )
    summaries = {}
    for label, name, policy in ROWS:
        console.print(f"[bold]{label}")
        lr = 3e-4 if name == "full" else config.lr
        run = replace(config, method=METHODS[name](), policy=policy, lr=lr)
        summaries[label] = train(run, args.output / f"{name}-{policy}", overwrite=True)
    console.print(table(summaries))
    picture, report = args.output / "picture.svg", args.output / "report.html"
    draw(summaries, picture)
    write_report([args.output], report, title="lowtide: digits with six methods")
    console.print(f"picture: {picture}\nreport:  {report}", soft_wrap=True)


def table(summaries: dict[str, RunSummary]) -> Table:
    """Set accuracy, size, memory and time of every run side by side."""
    out = Table(title="vit_micro_patch4_32 on digits, batch 32")
    for heading in ("method", "test acc.", "trained", "%", "planned MiB", "measured MiB", "time"):
        out.add_column(heading, justify="left" if heading == "method" else "right")
    unit = summaries["LoRA"].step_seconds
    for label, s in summaries.items():
        trained, total = s.trainable_parameters, s.total_parameters
        out.add_row(
            label,
            f"{s.test_accuracy:.3f}",
            f"{trained:,}",
            f"{100 * trained / total:.2f}",
            f"{s.planned.peak_bytes / 2**20:.1f}",
            f"{s.measured_peak_bytes / 2**20:.1f}",
            f"{s.step_seconds / unit:.2f}",
        )
    out.caption = "time: one update, relative to LoRA"
    return out


def draw(summaries: dict[str, RunSummary], file: Path) -> None:
    """Draw what each method reached against the memory that its step took."""
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for label, s in summaries.items():
        at = s.measured_peak_bytes / 2**20, s.test_accuracy
        axes.plot(*at, "o", color="tab:blue")
        axes.annotate(label, at, (5, 4), textcoords="offset points")
    axes.set(
        title="Six methods on digits: up and to the left is better",
        xlabel="peak of a training step, MiB",
        ylabel="test accuracy",
    )
    axes.margins(0.15)
    figure.savefig(file)


if __name__ == "__main__":
    main()

"""Print the README's memory table, the planned peak of every method by setting, and draw it.

python benchmarks/memory.py [--model NAME] [--batch-size B] [--num-classes K] [--figure FILE.svg]

The README's picture is `--figure docs/figures/memory.svg`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

from lowtide import METHODS, Method, Plan, plan
from lowtide.dense.options import TaskConfig
from lowtide.training.config import RunConfig

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "lowtide"
from matplotlib import pyplot  # noqa: E402 - the backend is chosen first

ROWS: dict[str, Method] = {
    "full": METHODS["full"](),
    "SSF": METHODS["ssf"](),
    "RLRR": METHODS["rlrr"](),
    "VPT-deep, 50 prompts": METHODS["vpt"](),
    "LoRA, every linear map, rank 8": RunConfig.method,
    "LoRA, q and v, rank 8": METHODS["lora"](),
    "S2A": METHODS["s2a"](),
    "Adapter, rank 8": METHODS["adapter"](),
    "bias": METHODS["bias"](),
    "DTL": METHODS["dtl"](),
    "LST": METHODS["lst"](),
    "UniPT": METHODS["unipt"](),
    "linear": METHODS["linear"](),
}
COLUMNS: dict[str, dict[str, Any]] = {
    "exact": {},
    "`s2a`": {"policy": "s2a"},
    "`tight`": {"policy": "tight"},
    "exact, checkpointing": {"checkpointing": True},
    "`tight`, checkpointing": {"policy": "tight", "checkpointing": True},
}


DRAWN = {
    "full": "full",
    "SSF": "SSF",
    "VPT-deep, 50 prompts": "VPT-deep",
    "LoRA, q and v, rank 8": "LoRA",
    "S2A": "S2A",
    "DTL": "DTL",
}
BARS = {
    "exact": ("PyTorch", "#9aa5a9"),
    "exact, checkpointing": ("PyTorch, gradient checkpointing", "#c9d1d3"),
    "`tight`": ("lowtide, tight", "#26a69a"),
    "`tight`, checkpointing": ("lowtide, tight with checkpointing", "#00695c"),
}
MIB = 2**20


def draw(found: Mapping[str, Sequence[Plan]], title: str, file: Path) -> None:
    """Draw the peaks of some methods side by side, in MiB, and the weights they all hold."""
    figure, axes = pyplot.subplots(figsize=(8, 4.6), layout="constrained")
    columns = list(COLUMNS)
    height = 0.8 / len(BARS)
    for i, (column, (label, colour)) in enumerate(BARS.items()):
        peaks = [found[name][columns.index(column)].peak_bytes / MIB for name in DRAWN]
        rows = [row + (i - 1.5) * height for row in range(len(DRAWN))]
        bars = axes.barh(rows, peaks, height, label=label, color=colour)
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=7)
    weights = found["linear"][0].parts["weights"] / MIB
    axes.axvline(weights, color="black", linewidth=0.8, linestyle=":")
    axes.text(weights, -0.55, " weights alone", fontsize=7, va="bottom")
    axes.set_yticks(range(len(DRAWN)), list(DRAWN.values()))
    axes.invert_yaxis()
    axes.set(title=title, xlabel="MiB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Plan every method under every policy, and with gradient checkpointing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-classes", type=int, default=100)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    print(f"| method | trained parameters | {' | '.join(COLUMNS)} |")
    print("|---|---|" + "---|" * len(COLUMNS))
    found = {}
    for name, method in ROWS.items():
        step = TaskConfig(batch_size=args.batch_size)
        plans = [
            plan(
                args.model,
                method,
                step=replace(step, **options),
                num_classes=args.num_classes,
            )
            for options in COLUMNS.values()
        ]
        found[name] = plans
        peaks = " | ".join(f"{p.peak_bytes / 2**20:.0f}" for p in plans)
        print(f"| {name} | {plans[0].trainable_parameters:,} | {peaks} |", flush=True)
    if args.figure:
        title = f"Peak memory of a training step, {args.model}, batch {args.batch_size}, float32"
        draw(found, title, args.figure)


if __name__ == "__main__":
    main()

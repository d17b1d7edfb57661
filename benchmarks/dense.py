"""Dense tasks: methods and policies on one backbone, what they reach and what they need.

    python -m benchmarks.dense DATA OUTPUT [--checkpoint FILE] [--only SET]

DATA holds `pennfudan` (pedestrians with masks), `bccd` (blood cells with boxes) and `dsb2018`
(nuclei with masks), each COCO's JSON and images in `train`, `val` and `test`. A row is a run folder
below OUTPUT; a finished one is not run again, and a killed one goes on. At the end the table is
printed in Markdown. One seed a row: differences of a few hundredths are noise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lowtide.methods import METHODS
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.training.owner import CONFIG, SUMMARY
from lowtide.training.summary import RunSummary, read_summary

MODEL = "vit_tiny_patch16_224"
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "pennfudan-segment": (
        "pennfudan",
        {"task": "segment", "decoder": "upernet", "image_size": 128, "epochs": 6, "batch_size": 8},
    ),
    "bccd-detect": (
        "bccd",
        {
            "task": "detect",
            "detector": "fcos",
            "image_size": 160,
            "epochs": 6,
            "batch_size": 8,
        },
    ),
    "pennfudan-instances": (
        "pennfudan",
        {"task": "instances", "image_size": 160, "epochs": 6, "batch_size": 8},
    ),
}
ROWS = {
    "pennfudan-segment": (
        ("linear", "exact"),
        ("bias", "exact"),
        ("lora", "exact"),
        ("lora", "tight"),
        ("full", "exact"),
        ("full", "tight"),
    ),
    "bccd-detect": (("lora", "exact"), ("lora", "tight"), ("linear", "exact")),
    "pennfudan-instances": (("lora", "tight"), ("lora", "exact"), ("linear", "exact")),
}
"""Method and policy; linear trains no part of the backbone."""
RATES = {"full": 2e-4}
COMMON: dict[str, Any] = {
    "model": MODEL,
    "decoder_channels": 64,
    "lr": 1e-3,
    "warmup_epochs": 1.0,
    "weight_decay": 1e-2,
    "clip_grad": 1.0,
    "recipe": "flip",
    "device": "cpu",
    "seed": 0,
}


def row(name: str, method: str, policy: str, args: argparse.Namespace) -> RunSummary:
    """Run a row, or read what it left."""
    folder = Path(args.output) / name / f"{method}-{policy}"
    data, options = SETS[name]
    if (folder / SUMMARY).exists():
        return read_summary(folder / SUMMARY)
    given = {**COMMON, **options, "data": str(Path(args.data) / data), "policy": policy}
    given |= {"lr": RATES.get(method, COMMON["lr"]), "checkpoint": args.checkpoint}
    config = RunConfig(**given, method=METHODS[method]())
    return train(config, folder, continues=(folder / CONFIG).exists())


def line(name: str, method: str, policy: str, run: RunSummary) -> str:
    """A row of the table."""
    tested = run.test_scores or {}
    score = tested.get(run.metric)
    cells = (
        name,
        method,
        policy,
        f"{run.trainable_parameters / 1e6:.2f} M",
        "-" if score is None else f"{run.metric} {score:.3f}",
        f"{(run.measured_peak_bytes or 0) / 2**20:.0f}",
        f"{run.planned.peak_bytes / 2**20:.0f}",
        f"{run.step_seconds or 0:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("output")
    parser.add_argument("--checkpoint", help=f"Safetensors file of {MODEL}.")
    parser.add_argument("--only", choices=list(SETS))
    args = parser.parse_args()
    names = [args.only] if args.only else list(SETS)
    rows = [(i, name, *given) for name in names for i, given in enumerate(ROWS[name])]
    done = {}
    for _, *given in sorted(rows, key=lambda r: r[0]):  # the first of each set first
        done[tuple(given)] = row(*given, args)
        print(line(*given, done[tuple(given)]), file=sys.stderr, flush=True)
    print("| set | method | policy | trains | test | peak MiB | planned MiB | s per update |")
    print("|" + "---|" * 8)
    for _, *given in rows:
        print(line(*given, done[tuple(given)]))


if __name__ == "__main__":
    main()

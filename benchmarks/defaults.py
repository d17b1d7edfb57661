"""Learning rates, epochs and the epoch kept: what the defaults of `lowtide train` were chosen by.

    python -m benchmarks.defaults --data FOLDER [--model vit_micro_patch4_32] [--checkpoint FILE]

FOLDER holds tasks in the list format of VTAB-1k, a folder each. Every row is one run that learns
from `train800.txt`, validates on `val200.txt` after each epoch and is tested with the weights of
the last epoch and with those of the best. A row is written to results/defaults/sweep.csv as it
ends, and what is in that file is not run again.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lowtide import METHODS
from lowtide.core.site import Role
from lowtide.data import read
from lowtide.training import loop
from lowtide.training.config import RunConfig
from lowtide.training.kept import put_back
from lowtide.training.scoring import accuracy_of, confusion_of

TABLE = Path(__file__).parents[1] / "results" / "defaults" / "sweep.csv"
EVERY = (Role.QKV, Role.PROJ, Role.FC1, Role.FC2)
SET_UPS: dict[str, Any] = {
    "lora": METHODS["lora"](),
    "lora every": METHODS["lora"](roles=EVERY, parts="qkv"),
    "s2a": METHODS["s2a"](),
    "full": METHODS["full"](),
    "bias": METHODS["bias"](),
    "ssf": METHODS["ssf"](),
    "adaptformer": METHODS["adaptformer"](),
    "fact_tt": METHODS["fact_tt"](),
    "rlrr": METHODS["rlrr"](),
    "linear": METHODS["linear"](),
    "partial": METHODS["partial"](),
    "mlp_head": METHODS["mlp_head"](),
    "dtl": METHODS["dtl"](plus=True),
    "lst": METHODS["lst"](),
    "unipt": METHODS["unipt"](),
}
UPDATES = 125
CACHED = {"linear", "partial", "mlp_head", "dtl", "lst", "unipt"}


@dataclass(frozen=True)
class Point:
    """What a row varies; size 0 is that of the weights."""

    model: str
    size: int
    task: str
    set_up: str
    lr: float
    head_lr_scale: float
    updates: int


@dataclass(frozen=True)
class Row(Point):
    """What came of it; accuracies as shares."""

    epochs: int
    start: float
    val_last: float
    val_best: float
    best_epoch: int
    test_last: float
    test_best: float
    seconds: int


def rows() -> list[Row]:
    """Read the rows that are there."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        kinds = {f.name: {"int": int, "float": float}.get(str(f.type), str) for f in fields(Row)}
        return [Row(**{k: kinds[k](v) for k, v in row.items()}) for row in csv.DictReader(file)]


def add(row: Row) -> None:
    """Write a row at the end of the table."""
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    new = not TABLE.exists()
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def run(point: Point, data: Path, checkpoint: str | None, folder: Path) -> Row:
    """Run one row."""
    images = len(read(data / point.task).train)
    epochs = round(point.updates / -(-images // 32))
    tested: dict[str, float] = {}
    started = time.perf_counter()
    config = RunConfig(
        point.model,
        str(data / point.task),
        SET_UPS[point.set_up],
        checkpoint=checkpoint,
        image_size=point.size or None,
        epochs=epochs,
        lr=point.lr,
        head_lr_scale=point.head_lr_scale,
        amp="no" if point.set_up in CACHED else "bf16",
        cache_features=point.set_up in CACHED,
        keep="best",
        device="cpu",
    )
    loop.put_back = lambda run: _test_last(run, tested)
    try:
        summary = loop.train(config, folder, overwrite=True)
    finally:
        loop.put_back = put_back
    return Row(
        **asdict(point),
        epochs=epochs,
        start=summary.start_accuracy,
        val_last=summary.history[-1].val_accuracy,
        val_best=summary.val_accuracy,
        best_epoch=summary.kept_epoch,
        test_last=round(tested.get("last", summary.test_accuracy), 4),
        test_best=round(summary.test_accuracy, 4),
        seconds=round(time.perf_counter() - started),
    )


def _test_last(run: Any, tested: dict[str, float]) -> None:
    """Test the last epoch before the best one takes its place."""
    if run.kept_epoch != len(run.history):
        model = run.features.model if run.features else run.tuned
        tested["last"] = accuracy_of(confusion_of(run, model, run.dataset.test))
    put_back(run)


STAGES = (
    ("lora every", (1e-2,), (0.1,), 3),
    ("s2a", (1e-2,), (0.1,), 3),
    ("lora every", (3e-3,), (0.1,), 3),
    ("s2a", (3e-3,), (0.1,), 3),
    ("lora every", (3e-3,), (1.0,), 2),
    ("full", (3e-4, 1e-3), (0.1,), 2),
    ("lora", (3e-3, 1e-2), (0.1,), 2),
    ("lora every", (3e-3,), (0.1,), 6),
    ("s2a", (3e-3,), (0.1,), 6),
    ("bias", (3e-3, 1e-2), (0.1,), 2),
    ("ssf", (3e-3, 1e-2), (0.1,), 2),
    ("mlp_head", (3e-4, 1e-3, 3e-3), (0.1,), 2),
    ("partial", (3e-4, 1e-3), (0.1,), 2),
    ("linear", (3e-4, 1e-3, 3e-3), (1.0,), 2),
    ("lora every", (1e-2, 1e-3), (0.1,), 6),
    ("s2a", (1e-2, 1e-3), (0.1,), 6),
    ("full", (3e-4, 1e-3), (0.1,), 6),
    ("dtl", (3e-3, 1e-2), (0.1,), 3),
    ("adaptformer", (3e-3, 1e-2), (0.1,), 3),
    ("rlrr", (3e-3, 1e-2), (0.1,), 3),
    ("fact_tt", (3e-3, 1e-2), (0.1,), 3),
    ("lst", (1e-3, 3e-3), (0.1,), 3),
    ("unipt", (1e-3, 3e-3), (0.1,), 3),
)
"""What is run, what decides most first: set-up, rates, scales of the head's rate, tasks."""


def points(model: str, size: int | None, tasks: list[str]) -> Iterator[Point]:
    """List what is run."""
    for name, rates, scales, many in STAGES:
        for lr in rates:
            for scale in scales:
                for task in tasks[:many]:
                    yield Point(model, size or 0, task, name, lr, scale, UPDATES)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="vit_micro_patch4_32")
    parser.add_argument("--checkpoint")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--set-ups", nargs="+", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = {tuple(getattr(r, f.name) for f in fields(Point)) for r in rows()}
    with tempfile.TemporaryDirectory() as kept:
        for point in points(args.model, args.image_size, args.tasks):
            wanted = not args.set_ups or point.set_up in args.set_ups
            if wanted and tuple(asdict(point).values()) not in done:
                row = run(point, args.data, args.checkpoint, Path(kept) / "run")
                done.add(tuple(asdict(point).values()))
                add(row)
                print(row, flush=True)


if __name__ == "__main__":
    main()

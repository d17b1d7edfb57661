"""The defaults of `lowtide train`: what they were chosen by, and what they are worth.

    python -m benchmarks.defaults sweep --data FOLDER --tasks TASK ... [--updates N]
        [--rates RATE ...] [--set-ups NAME ...]
    python -m benchmarks.defaults show [--updates N]
    python -m benchmarks.defaults compare --data FOLDER --tasks TASK ...
        [--contestants defaults regression "peft 0.003" ...]
        [--model vit_micro_patch4_32] [--checkpoint FILE] [--image-size SIDE]

FOLDER holds the tasks, a folder of images each in any format that lowtide reads, such as VTAB-1k's
lists. A row is written to results/defaults/sweep.csv or compare.csv as it ends, and what is in that
file is not run again.

`sweep`: every row is one run, validated after each epoch and tested with the weights of the last
epoch and with those of the best. Rates are those of the stages below, or given. `show` prints what
there is of it.

`compare`: a run with nothing but defaults; logistic regression on the backbone's features, its
penalty by cross-validation; and peft's LoRA (rank 8 on qkv, a new classifier) for as many updates,
with the best of three learning rates on the validation images. All learn from the same images.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import peft
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lowtide import METHODS
from lowtide.core.site import Role
from lowtide.data import Cache, Dataset, Preprocessing, Sample, loader, read
from lowtide.training import loop, starting_point
from lowtide.training.config import RunConfig
from lowtide.training.decided import Decided, decide
from lowtide.training.kept import Kept, keep_start, put_back
from lowtide.training.prepare import Run
from lowtide.training.scoring import score_of
from lowtide.training.summary import RunSummary
from lowtide.tuning.backbone import create

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
BATCH = 32
DEFAULTS, REGRESSION = "defaults", "regression"
PEFT = {f"peft {rate:g}": rate for rate in (1e-3, 3e-3, 1e-2)}
CONTESTANTS = (DEFAULTS, REGRESSION, *PEFT)
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


class Table:
    """Rows of a dataclass in a CSV file, one written as it ends."""

    def __init__(self, path: Path, kind: Any) -> None:
        self.path, self.kind = path, kind

    def rows(self) -> list[Any]:
        """Read the rows that are there."""
        if not self.path.exists():
            return []
        kinds = {f.name: {"int": int, "float": float}.get(f.type, str) for f in fields(self.kind)}
        with self.path.open(newline="") as file:
            return [
                self.kind(**{k: kinds[k](v) for k, v in row.items()})
                for row in csv.DictReader(file)
            ]

    def keys(self, names: tuple[str, ...]) -> set[tuple[Any, ...]]:
        """List what rows are known by."""
        return {tuple(getattr(row, n) for n in names) for row in self.rows()}

    def add(self, row: Any) -> None:
        """Write a row at the end."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(self.kind)])
            if new:
                writer.writeheader()
            writer.writerow(asdict(row))


def run(point: Point, data: Path, checkpoint: str | None, folder: Path) -> Row:
    """Run one row."""
    images = len(read(data / point.task).train)
    epochs = round(point.updates / -(-images // 32))
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
    summary, tested = tested_thrice(config, folder)
    return Row(
        **asdict(point),
        epochs=epochs,
        start=summary.start_accuracy,
        val_last=summary.history[-1].val_accuracy,
        val_best=summary.val_accuracy,
        best_epoch=summary.kept_epoch,
        test_last=round(tested["end"], 4),
        test_best=round(summary.test_accuracy, 4),
        seconds=round(time.perf_counter() - started),
    )


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


def points(args: argparse.Namespace, tasks: list[str]) -> Iterator[Point]:
    """List what is run."""
    given = [(name, args.rates, (0.1,), len(tasks)) for name in args.set_ups]
    for name, rates, scales, many in given if args.rates else STAGES:
        for lr in rates:
            for scale in scales:
                for task in tasks[:many]:
                    yield Point(args.model, args.image_size, task, name, lr, scale, args.updates)


@dataclass(frozen=True)
class Compared:
    """A contestant on a task; accuracies as shares, 0 where there is none.

    share is how far from the start to the end of a run the model is that was kept.
    """

    model: str
    size: int
    task: str
    contestant: str
    images: int
    updates: int
    share: float
    val: float
    test_start: float
    test_last: float
    test: float
    seconds: int


def compare(
    key: tuple[str, int, str, str], data: Path, checkpoint: str | None, folder: Path
) -> Compared:
    """Run a contestant: the defaults, the defaults of a set-up, or what they are held against."""
    started = time.perf_counter()
    model, size, task, contestant = key
    dataset = read(data / task)
    batches = -(-len(dataset.train) // BATCH)
    method = SET_UPS.get(contestant, RunConfig.method)
    config = RunConfig(
        model,
        str(data / task),
        method,
        checkpoint=checkpoint,
        image_size=size or None,
        device="cpu",
    )
    epochs = Decided.of(decide(config, updates=batches, validated=True)).epochs
    share, start = 1.0, 0.0
    if contestant in (DEFAULTS, *SET_UPS):
        summary, tested = tested_thrice(config, folder)
        share, start, last = summary.kept_share, tested["start"], tested["end"]
        val, test = summary.val_accuracy, summary.test_accuracy
    else:
        backbone = create(
            model, checkpoint=Path(checkpoint) if checkpoint else None, image_size=size or None
        )
        transform = Preprocessing.of(backbone).transform(train=False)
        if contestant == REGRESSION:
            val, test = 0.0, regression(backbone, transform, dataset)
        else:
            val, test = peft_lora(backbone, transform, dataset, epochs, PEFT[contestant])
        last = test
    seconds = round(time.perf_counter() - started)
    numbers = (round(n, 4) for n in (share, val, start, last, test))
    return Compared(*key, len(dataset.train), epochs * batches, *numbers, seconds)


def tested_thrice(config: RunConfig, folder: Path) -> tuple[RunSummary, dict[str, float]]:
    """Run a config; its summary, and test accuracy of the start and of the last epoch as well."""
    tested: dict[str, float] = {}

    def at_start(run: Run) -> None:
        tested["start"] = _tested(run)
        keep_start(run)

    def at_end(run: Run, model: torch.nn.Module) -> Kept:
        tested["end"] = _tested(run)
        return put_back(run, model)

    starting_point.keep_start, loop.put_back = at_start, at_end
    try:
        summary = loop.train(config, folder, overwrite=True)
    finally:
        starting_point.keep_start, loop.put_back = keep_start, put_back
    return summary, tested


def _tested(run: Run) -> float:
    model = run.features.model if run.features else run.tuned
    return score_of(run, model, run.dataset.test) or 0.0


def regression(backbone: torch.nn.Module, transform: Any, dataset: Dataset) -> float:
    """Test accuracy of logistic regression on frozen features."""

    def features(samples: tuple[Sample, ...]) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        with torch.no_grad():
            for images, labels in loader(samples, transform, BATCH, shuffle=False):
                seen = backbone.forward_head(backbone.forward_features(images), pre_logits=True)
                parts.append((seen.numpy(), labels.numpy()))
        return tuple(map(np.concatenate, zip(*parts, strict=True)))

    backbone.eval()
    x, y = features(dataset.train)
    model = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=10, cv=3, max_iter=500))
    return float(model.fit(x, y).score(*features(dataset.test)))


def peft_lora(
    backbone: Any, transform: Any, dataset: Dataset, epochs: int, lr: float
) -> tuple[float, float]:
    """Train peft's LoRA; validation and test accuracy of the last epoch."""
    torch.manual_seed(0)
    backbone.reset_classifier(len(dataset.classes))
    head = [n for n, m in backbone.named_modules() if m is backbone.get_classifier()]
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"], modules_to_save=head)
    model = peft.get_peft_model(backbone, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=1e-4)
    updates, cache = epochs * -(-len(dataset.train) // BATCH), Cache()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, updates, pct_start=0.1)
    for epoch in range(epochs):
        for images, labels in loader(
            dataset.train, transform, BATCH, shuffle=True, epoch=epoch, cache=cache
        ):
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()
    return _accuracy(model, transform, dataset.val), _accuracy(model, transform, dataset.test)


@torch.no_grad()
def _accuracy(model: Any, transform: Any, samples: tuple[Sample, ...]) -> float:
    batches = loader(samples, transform, BATCH, shuffle=False)
    right = sum(int((model(x).argmax(-1) == y).sum()) for x, y in batches)
    return right / len(samples)


def table_of(rows: list[Row]) -> None:
    """Print the sweep: test accuracy of the last epoch, and of the best where it is another."""
    tasks = list(dict.fromkeys(r.task for r in rows))
    print("| set-up | rate | classifier's | " + " | ".join(tasks) + " |")
    print("|" + "---|" * (3 + len(tasks)))
    cells: dict[tuple[str, float, float], dict[str, str]] = {}
    for r in rows:
        other = f" ({100 * r.test_best:.1f})" if r.test_best != r.test_last else ""
        row = cells.setdefault((r.set_up, r.lr, r.lr * r.head_lr_scale), {})
        row[r.task] = f"{100 * r.test_last:.1f}{other}"
    for (name, lr, head), row in sorted(cells.items()):
        print(f"| {name} | {lr:g} | {head:g} | " + " | ".join(row.get(t, "") for t in tasks) + " |")


def compare_rules(rows: list[Row]) -> None:
    """Print what the whole sweep tests at, by the epoch that is kept."""
    by_rule = {
        "last": [r.test_last for r in rows],
        "best": [r.test_best for r in rows],
    }
    means = ", ".join(f"{rule} {100 * mean(found):.1f}" for rule, found in by_rule.items())
    print(f"mean test accuracy of all {len(rows)} rows, by what is kept: {means}")


def report(rows: list[Compared], contestants: list[str]) -> None:
    """Print each task that has every row, and the means over tasks."""
    others = [c for c in contestants if c != REGRESSION and c not in PEFT]
    print(f"| task | updates | {' | '.join(others)} | logistic regression | peft LoRA |")
    print("|" + "---|" * (4 + len(others)))
    kept = []
    for task in dict.fromkeys(r.task for r in rows):
        here = {r.contestant: r for r in rows if r.task == task}
        if not {*contestants, *CONTESTANTS[1:]} <= here.keys():
            continue
        best = max((here[name] for name in PEFT), key=lambda r: r.val)
        chosen = [*(here[c] for c in others), here[REGRESSION], best]
        kept.append([100 * r.test for r in chosen])
        cells = " | ".join(f"{100 * r.test:.1f}" for r in chosen)
        print(f"| {task} | {best.updates} | {cells} |")
    if not kept:
        return
    means = [sum(column) / len(kept) for column in zip(*kept, strict=True)]
    print(f"| mean | | {' | '.join(f'{m:.1f}' for m in means)} |")
    for at, name in enumerate(others):
        ahead = sum(row[at] - max(row[-2:]) for row in kept) / len(kept)
        worst = min(row[at] - row[-2] for row in kept)
        print(
            f"{name}: {means[at] - max(means[-2:]):+.1f} points above the better mean,"
            f" {ahead:+.1f} above the better of each task;"
            f" worst against logistic regression {worst:+.1f}"
        )


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["sweep", "show", "compare"])
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--tasks", nargs="+", help="By default every folder in FOLDER.")
    parser.add_argument("--model", default="vit_micro_patch4_32")
    parser.add_argument("--checkpoint")
    parser.add_argument("--image-size", type=int, default=0)
    parser.add_argument("--set-ups", nargs="+", default=list(SET_UPS))
    parser.add_argument("--rates", nargs="+", type=float)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument(
        "--contestants", nargs="+", default=CONTESTANTS, choices=[*CONTESTANTS, *SET_UPS]
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "show":
        wanted = (args.model, args.image_size, args.updates)
        rows = [r for r in Table(TABLE, Row).rows() if (r.model, r.size, r.updates) == wanted]
        table_of(rows)
        return compare_rules(Table(TABLE, Row).rows())
    tasks = args.tasks or sorted(p.name for p in args.data.iterdir() if p.is_dir())
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept) / "run"
        if args.what == "sweep":
            sweep(args, tasks, folder)
        else:
            table = Table(TABLE.with_name("compare.csv"), Compared)
            for task in tasks:
                for contestant in args.contestants:
                    key = (args.model, args.image_size, task, contestant)
                    if key not in table.keys(("model", "size", "task", "contestant")):
                        row = compare(key, args.data, args.checkpoint, folder)
                        table.add(row)
                        print(row, flush=True)
            here = [r for r in table.rows() if (r.model, r.size) == (args.model, args.image_size)]
            report([r for r in here if r.task in tasks], args.contestants)


def sweep(args: argparse.Namespace, tasks: list[str], folder: Path) -> None:
    """Run the rows of the sweep that are missing."""
    table, keys = Table(TABLE, Row), tuple(f.name for f in fields(Point))
    for point in points(args, tasks):
        if point.set_up in args.set_ups and tuple(asdict(point).values()) not in table.keys(keys):
            row = run(point, args.data, args.checkpoint, folder)
            table.add(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()

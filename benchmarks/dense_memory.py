"""What a step of Mask R-CNN and UperNet needs at 1024 x 1024: methods x ways to save memory.

    python -m benchmarks.dense_memory results/dense_memory.csv [MODEL ...]
    python -m benchmarks.dense_memory --measure 512

float32, one image (two for UperNet, whose BatchNorm after global pooling needs two), as `lowtide
plan` simulates it: nothing is computed. A row that the file has is not planned again. At the end
the table is printed in Markdown: MiB of the peak. The second command takes steps of UperNet on
Swin-T at that size and prints what they needed beside their plans.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from lowtide.dense.options import TaskConfig
from lowtide.dense.plans import plan_dense
from lowtide.dense.pyramid import backbone_path
from lowtide.dense.tasks import TASKS as KINDS
from lowtide.methods import METHODS
from lowtide.planning.loss import of_outputs
from lowtide.planning.meter import footprint
from lowtide.planning.simulate import set_up_step
from lowtide.planning.step import make_optimizer, training_step
from lowtide.tuning.applying import apply
from lowtide.tuning.backbone import create

SIZE, MIB = 1024, 2**20
MODELS = {
    "swin_tiny_patch4_window7_224": "Swin-T",
    "vit_base_patch16_224": "ViT-B",
    "convnext_base": "ConvNeXt-B",
    "swin_base_patch4_window7_224": "Swin-B",
}
TASKS = {"instances": "Mask R-CNN", "segment": "UperNet"}
OPTIONS = {"segment": {"decoder": "upernet", "batch_size": 2}, "instances": {"batch_size": 1}}
WAYS = {
    "exact": {},
    "checkpointing": {"checkpointing": True},
    "tight": {"policy": "tight"},
    "tight, checkpointing": {"policy": "tight", "checkpointing": True},
}
METHOD_NAMES = ("ssf", "lora", "s2a", "full")
CLASSES = {"segment": 150, "instances": 80}
Key = tuple[str, str, str, str]
Sizes = tuple[float, float]


def step_of(task: str, way: str) -> TaskConfig:
    """The step's options."""
    return TaskConfig(task=task, **OPTIONS[task], **WAYS[way])  # type: ignore[arg-type]


def planned(task: str, model: str, method: str, way: str, size: int = SIZE) -> Sizes:
    """MiB kept for backward, and of the peak."""
    found = plan_dense(
        model,
        METHODS[method](),
        step=step_of(task, way),
        num_classes=CLASSES[task],
        image_size=size,
    )
    return found.parts["saved"] / MIB, found.peak_bytes / MIB


def measured(task: str, model: str, method: str, way: str, size: int) -> float:
    """MiB of the peak of two steps that are taken."""
    step, names = step_of(task, way), tuple(map(str, range(CLASSES[task])))
    learnt = KINDS[task](names, size, (0.5,) * 3, (0.5,) * 3, step)
    made = learnt.model(create(model, pretrained=False, image_size=size))
    tuned = set_up_step(apply(made, METHODS[method](), backbone=backbone_path(made)), step).train()
    optimizer = make_optimizer(tuned)
    batch = learnt.example(step.batch_size, (3, size, size))
    loss = of_outputs(learnt.loss)
    run = footprint(lambda: training_step(tuned, optimizer, [batch], loss=loss), tuned, optimizer)
    return run.peak_bytes / MIB


def known(path: Path) -> dict[Key, Sizes]:
    """Rows that are there."""
    if not path.is_file():
        return {}
    with path.open() as file:
        return {
            (r["task"], r["model"], r["method"], r["way"]): (float(r["saved"]), float(r["peak"]))
            for r in csv.DictReader(file)
        }


def write(path: Path, rows: dict[Key, Sizes]) -> None:
    """Leave all rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("task", "model", "method", "way", "saved", "peak"))
        out.writerows((*key, *(f"{n:.1f}" for n in sizes)) for key, sizes in rows.items())


def table(rows: dict[Key, Sizes]) -> str:
    """A line per model and method that has all ways."""
    lines = [f"| model | method | {' | '.join(WAYS)} |", "|" + "---|" * (2 + len(WAYS))]
    for task, detector in TASKS.items():
        for model, name in MODELS.items():
            for method in METHOD_NAMES:
                found = [rows.get((task, model, method, way)) for way in WAYS]
                cells = [f"{f[1]:,.0f}" for f in found if f]
                if len(cells) == len(WAYS):
                    lines.append(f"| {detector}, {name} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(size: int) -> None:
    """Take steps of UperNet on Swin-T and print a line for each."""
    print("| way | planned | measured |\n|---|---|---|")
    for way in WAYS:
        key = ("segment", next(iter(MODELS)), "ssf", way)
        print(
            f"| {way} | {planned(*key, size)[1]:,.1f} | {measured(*key, size):,.1f} |", flush=True
        )


def main() -> None:
    """Plan what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, nargs="?", default=Path("results/dense_memory.csv"))
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], default=[])
    parser.add_argument("--measure", type=int, help="side of the images of steps to take")
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    rows = known(args.output)
    for method in METHOD_NAMES:
        for model in args.models or MODELS:
            for task in TASKS:
                for way in WAYS:
                    key = (task, model, method, way)
                    if key not in rows:
                        rows[key] = planned(*key)
                        write(args.output, rows)
    print(table(rows))


if __name__ == "__main__":
    main()

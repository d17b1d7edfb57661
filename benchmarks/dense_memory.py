"""What a step of Mask R-CNN and UperNet needs at 1024 x 1024: methods x ways to save memory.

    python -m benchmarks.dense_memory results/dense_memory.csv [MODEL ...]

float32, one image (two for UperNet, whose BatchNorm after global pooling needs two), as `lowtide
plan` simulates it: nothing is computed. A row that the file has is not planned again. At the end
the table is printed in Markdown: MiB of the peak.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from lowtide.dense.options import TaskConfig
from lowtide.dense.plans import plan_dense
from lowtide.methods import METHODS

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


def planned(task: str, model: str, method: str, way: str) -> Sizes:
    """MiB kept for backward, and of the peak."""
    step = TaskConfig(task=task, **OPTIONS[task], **WAYS[way])  # type: ignore[arg-type]
    found = plan_dense(
        model, METHODS[method](), step=step, num_classes=CLASSES[task], image_size=SIZE
    )
    return found.parts["saved"] / MIB, found.peak_bytes / MIB


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


def main() -> None:
    """Plan what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], default=[])
    args = parser.parse_args()
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

"""Print the table of docs/memory.md: the planned peak of a step on one large image, and draw it.

python -m benchmarks.one_image [--models NAME ...] [--figure FILE.svg]

LoRA of rank 8, on q and v (ConvNeXt V2: on its MLPs; Swin-T: full), 100 classes, batch 1, float32,
AdamW; MiB. The page's picture is `--figure docs/figures/one-image.svg`: for each model, what the
bytes of each peak are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

from lowtide import METHODS, LowtideError, Plan, plan
from lowtide.dense.options import TaskConfig

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "lowtide"  # the same picture is the same file
from matplotlib import pyplot  # noqa: E402 - the backend is chosen first

ROWS = {
    "vit_base_patch16_224": (1024, "lora"),
    "vit_large_patch14_dinov2": (518, "lora"),
    "vit_giant_patch14_dinov2": (518, "lora"),
    "samvit_base_patch16": (1024, "lora"),
    "samvit_huge_patch16": (1024, "lora"),
    "swin_tiny_patch4_window7_224": (1024, "full"),
    "convnextv2_huge": (288, "lora"),
}
"""Pixels and method by model."""
COLUMNS = {
    "exact": {},
    "exact, checkpointing": {"checkpointing": True},
    "tight": {"policy": "tight"},
    "tight, checkpointing": {"policy": "tight", "checkpointing": True},
    "the same, bf16": {"policy": "tight", "checkpointing": True, "frozen_dtype": "bf16"},
    "the same, nf4": {"policy": "tight", "checkpointing": True, "frozen_dtype": "nf4"},
}
COLOURS = {
    "weights": "#546e7a",
    "saved": "#26a69a",
    "temporaries": "#ffb74d",
    "gradients": "#ef5350",
    "optimiser": "#7e57c2",
}
"""Of the parts of a peak, as a plan names them."""
MIB = 2**20


def planned(model: str, pixels: int, method: str, options: dict[str, object]) -> Plan | None:
    """Plan one step; None where it is refused."""
    step = TaskConfig(batch_size=1, **options)  # type: ignore[arg-type]
    try:
        return plan(model, METHODS[method](), step=step, num_classes=100, image_size=pixels)
    except LowtideError:
        return None


def draw(found: Mapping[str, Sequence[Plan | None]], file: Path) -> None:
    """Draw each peak as a bar of its parts, one panel for each model."""
    figure, panels = pyplot.subplots(
        len(found), 1, figsize=(8, 1.45 * len(found)), layout="constrained", squeeze=False
    )
    for axes, (model, plans) in zip(panels[:, 0], found.items(), strict=True):
        named = [(c, p) for c, p in zip(COLUMNS, plans, strict=True) if p is not None]
        left = [0.0] * len(named)
        for part, colour in COLOURS.items():
            sizes = [p.parts[part] / MIB for _, p in named]
            bars = axes.barh([c for c, _ in named], sizes, left=left, color=colour, label=part)
            left = [a + b for a, b in zip(left, sizes, strict=True)]
        axes.bar_label(bars, [f"{size:.0f}" for size in left], padding=3, fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.08)
        axes.tick_params(labelsize=7)
        axes.set_title(
            f"{model}, {ROWS[model][0]} pixels, {ROWS[model][1]}", fontsize=8, loc="left"
        )
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(fontsize=7, frameon=False, loc="lower right")
    panels[-1, 0].set_xlabel("peak of one step, MiB", fontsize=8)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Plan row by row; each is printed as it ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--figure", type=Path, help="where to draw them, as SVG")
    args = parser.parse_args()
    print(f"| model | pixels | method | {' | '.join(COLUMNS)} |")
    print("|---|---|---|" + "---|" * len(COLUMNS))
    found = {}
    for model in args.models:
        pixels, method = ROWS[model]
        found[model] = [planned(model, pixels, method, options) for options in COLUMNS.values()]
        peaks = ["-" if p is None else f"{p.peak_bytes / MIB:.0f}" for p in found[model]]
        print(f"| `{model}` | {pixels} | {method} | {' | '.join(peaks)} |", flush=True)
    if args.figure is not None:
        draw(found, args.figure)


if __name__ == "__main__":
    main()

"""Print the table of docs/memory.md: the planned peak of a step on one large image, by setting.

python -m benchmarks.one_image [--models NAME ...]

LoRA of rank 8, on q and v (ConvNeXt V2: on its MLPs; Swin-T: full), 100 classes, batch 1, float32,
AdamW; MiB. A plan of a large image simulates every chunk: the whole table takes some hours of one
core, most of them for weights in few bits.
"""

from __future__ import annotations

import argparse

from lowtide import METHODS, LowtideError, plan
from lowtide.dense.options import TaskConfig

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
    "the same, nf4": {"policy": "tight", "checkpointing": True, "frozen_dtype": "nf4"},
}


def peak(model: str, pixels: int, method: str, options: dict[str, object]) -> str:
    """Plan one step; a dash where it is refused."""
    step = TaskConfig(batch_size=1, **options)  # type: ignore[arg-type]
    try:
        planned = plan(model, METHODS[method](), step=step, num_classes=100, image_size=pixels)
    except LowtideError:
        return "-"
    return f"{planned.peak_bytes / 2**20:.0f}"


def main() -> None:
    """Plan row by row; each is printed as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(ROWS), choices=list(ROWS))
    print(f"| model | pixels | method | {' | '.join(COLUMNS)} |")
    print("|---|---|---|" + "---|" * len(COLUMNS))
    for model in parser.parse_args().models:
        pixels, method = ROWS[model]
        peaks = [peak(model, pixels, method, options) for options in COLUMNS.values()]
        print(f"| `{model}` | {pixels} | {method} | {' | '.join(peaks)} |", flush=True)


if __name__ == "__main__":
    main()

"""Draw what many adapters on one backbone share: how many feature maps each block is run on.

    python -m benchmarks.sharing [--model vit_base_patch16_224] [--adapters 4]

Counted by running one image through `lowtide.MultiAdapter` for several adapters of a method; a
block that all share is run on one map. Writes docs/figures/many-tasks.svg.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib
import torch

from benchmarks.tasks import backbone, images, saved
from lowtide import METHODS, MultiAdapter

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "lowtide"
from matplotlib import pyplot  # noqa: E402 - the backend is chosen first

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "many-tasks.svg"
SHOWN = {
    "linear, LST": ("lst", {}),
    "DTL, M = 7": ("dtl", {"start_block": 7}),
    "LoRA": ("lora", {}),
}


def maps(model: str, name: str, options: dict[str, int], adapters: int) -> list[int]:
    """Count the feature maps that each block is run on for one image."""
    with tempfile.TemporaryDirectory() as folder:
        kept = saved(model, METHODS[name](**options), adapters, Path(folder))
        together = MultiAdapter(backbone(model), kept)
    counts = dict.fromkeys(together._regions.chain, 0)

    def count(path: str, x: torch.Tensor) -> None:
        counts[path] += len(x)

    for path in counts:
        module = together.backbone.get_submodule(path)
        module.register_forward_pre_hook(lambda m, given, path=path: count(path, given[0]))
    together(images(model, 1, "cpu"))
    return list(counts.values())


def main() -> None:
    """Count, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--adapters", type=int, default=4)
    args = parser.parse_args()
    figure, axes = pyplot.subplots(len(SHOWN), 1, figsize=(7, 4), sharex=True)
    for axis, (words, (name, options)) in zip(axes, SHOWN.items(), strict=True):
        counts = maps(args.model, name, options, args.adapters)
        print(f"{words}: {counts}", flush=True)
        places = range(1, len(counts) + 1)
        axis.bar(places, counts, color=["#4c78a8" if n == 1 else "#f58518" for n in counts])
        axis.set_xticks(list(places))
        axis.set_yticks([1, args.adapters])
        axis.set_title(f"{args.adapters} adapters, {words}", fontsize=9, loc="left")
    axes[-1].set_xlabel("block")
    figure.supylabel("feature maps run, one image", fontsize=9)
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()

"""Draw what one block keeps for the backward pass, op by op, under each policy.

    python benchmarks/stack.py [--model vit_base_patch16_224] [--batch-size 4]

One forward; each storage that autograd saves is charged to the part of the block that was running
when it was first saved. Writes docs/figures/stack.svg and prints the table, in MiB per image.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import matplotlib
import timm
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lowtide import METHODS, compress
from lowtide.families import image_shape
from lowtide.tuning.applying import apply

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "lowtide"
from matplotlib import pyplot  # noqa: E402 - the backend is chosen first

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "stack.svg"
PARTS = {"norm1": "LayerNorms", "norm2": "LayerNorms", "attn": "attention", "mlp": "MLP"}


def kept(model_name: str, method: str, policy: str, batch: int) -> Counter[str]:
    """Bytes kept in the middle block of the chain, by part."""
    tuned = apply(timm.create_model(model_name), METHODS[method](), num_classes=100).train()
    compress(tuned, policy)
    chain = tuned.family.chain(tuned.backbone)
    middle = chain[len(chain) // 2]
    running: list[str] = []
    bytes_of: Counter[str] = Counter()
    weights = [p.untyped_storage() for p in tuned.parameters()]
    seen: dict[int, object] = {storage._cdata: storage for storage in weights}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        inside = [p.removeprefix(f"{middle}.") for p in running if p.startswith(f"{middle}.")]
        if storage._cdata not in seen:
            seen[storage._cdata] = storage
            if inside:
                part = inside[0].partition(".")[0]
                bytes_of[PARTS.get(part, "other")] += storage.nbytes()
        return tensor

    for path, module in tuned.backbone.named_modules():
        module.register_forward_pre_hook(lambda m, args, path=path: running.append(path))
        module.register_forward_hook(lambda m, args, y: running.pop() and None)
    with saved_tensors_hooks(pack, lambda t: t):
        tuned(torch.rand(batch, *image_shape(tuned.backbone)))
    return bytes_of


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    unit = args.batch_size * 2**20
    rows = {
        (method, policy): kept(args.model, method, policy, args.batch_size)
        for method in ("bias", "lora", "ssf")
        for policy in ("exact", "s2a", "tight")
    }
    parts = sorted({p for counts in rows.values() for p in counts})
    print("| method | policy |", " | ".join(parts), "| all |")
    print("|" + "---|" * (len(parts) + 3))
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    bottom = [0.0] * len(rows)
    labels = [f"{method}\n{policy}" for method, policy in rows]
    for part in parts:
        sizes = [counts[part] / unit for counts in rows.values()]
        axes.bar(labels, sizes, bottom=bottom, label=part)
        bottom = [b + s for b, s in zip(bottom, sizes, strict=True)]
    for (method, policy), counts in rows.items():
        cells = [f"{counts[p] / unit:.2f}" for p in parts]
        print(f"| {method} | {policy} |", " | ".join(cells), f"| {counts.total() / unit:.2f} |")
    axes.set(ylabel="kept by one block, MiB per image")
    axes.legend(frameon=False)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()

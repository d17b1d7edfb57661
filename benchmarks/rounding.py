"""Train with nearest and with stochastic rounding under `tight`, and exactly, on real digits.

    python benchmarks/rounding.py [--bits 4] [--method bias] [--epochs 2] [--seeds 3]

The bundled backbone on scikit-learn's digits; everything but the rounding is the same. `--bits`
replaces the width of every group-wise codec of the policy, so that a difference has room to show.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from lowtide import METHODS, POLICIES, Policy, apply, compress, create
from lowtide.codecs.affine import Affine, Rounding
from lowtide.planning.step import make_optimizer, training_step

BATCH, RATE = 16, 4e-3


def rounded(rounding: Rounding, bits: int) -> Policy:
    """`tight` with another width and rounding."""

    def changed(codec: object) -> object:
        return replace(codec, bits=bits, rounding=rounding) if type(codec) is Affine else codec

    tight = POLICIES["tight"]()
    codecs = {k: changed(c) for k, c in tight.codecs.items() if k != "max_pool"}
    return replace(tight, codecs=codecs, recompute=changed(tight.recompute))


def accuracy(method: str, policy: Policy, seed: int, epochs: int, data: list[Tensor]) -> float:
    """Train once; test accuracy after the last epoch."""
    torch.manual_seed(seed)
    images, tests, labels, answers = data
    tuned = compress(
        apply(create("vit_micro_patch4_32"), METHODS[method](), num_classes=10), policy
    )
    optimizer = make_optimizer(tuned, lr=RATE)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps, pct_start=0.1
    )
    tuned.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            training_step(tuned, optimizer, [(images[rows], labels[rows])])
            schedule.step()
    with torch.no_grad():
        said = torch.cat([tuned.eval()(part).argmax(1) for part in tests.split(100)])
    return (said == answers).double().mean().item()


def main() -> None:
    """Print one row per rounding."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--method", default="bias")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    pixels = F.interpolate(pixels, 32, mode="bicubic").expand(-1, 3, -1, -1).contiguous()
    data = train_test_split(
        pixels, torch.tensor(digits.target), test_size=500, stratify=digits.target, random_state=0
    )
    policies = {
        "exact": Policy(),
        "nearest": rounded("nearest", args.bits),
        "stochastic": rounded("stochastic", args.bits),
    }
    print(f"| {args.method}, {args.bits} bits | test accuracy |\n|---|---|")
    for name, policy in policies.items():
        found = [
            accuracy(args.method, policy, seed, args.epochs, data) for seed in range(args.seeds)
        ]
        print(f"| {name} | {mean(found):.3f} ± {stdev(found):.3f} |", flush=True)


if __name__ == "__main__":
    main()

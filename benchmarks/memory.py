"""Print the README's memory table: the planned peak of every method, exact and tight.

python benchmarks/memory.py [--model NAME] [--batch-size B] [--num-classes K]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from lowtide import METHODS, StepConfig, plan

ORDER = (
    "full",
    "ssf",
    "rlrr",
    "vpt",
    "lora",
    "s2a",
    "adapter",
    "bias",
    "dtl",
    "lst",
    "unipt",
    "linear",
)
COLUMNS = ("exact", "s2a", "tight")


def main() -> None:
    """Plan every method under every policy, and with gradient checkpointing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-classes", type=int, default=100)
    args = parser.parse_args()
    print(f"| method | trained parameters | {' | '.join(COLUMNS)} | exact, checkpointing |")
    print("|---|---|" + "---|" * (len(COLUMNS) + 1))
    for name in ORDER:
        step = StepConfig(batch_size=args.batch_size)
        steps = [replace(step, policy=policy) for policy in COLUMNS]
        plans = [
            plan(args.model, METHODS[name](), step=s, num_classes=args.num_classes)
            for s in (*steps, replace(step, checkpointing=True))
        ]
        peaks = " | ".join(f"{p.peak_bytes / 2**20:.0f}" for p in plans)
        print(f"| {name} | {plans[0].trainable_parameters:,} | {peaks} |", flush=True)


if __name__ == "__main__":
    main()

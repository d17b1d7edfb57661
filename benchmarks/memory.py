"""Print the README's memory table: the planned peak of every method, by setting.

python benchmarks/memory.py [--model NAME] [--batch-size B] [--num-classes K]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

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
COLUMNS: dict[str, dict[str, Any]] = {
    "exact": {},
    "`s2a`": {"policy": "s2a"},
    "`tight`": {"policy": "tight"},
    "exact, checkpointing": {"checkpointing": True},
    "`tight`, checkpointing": {"policy": "tight", "checkpointing": True},
}


def main() -> None:
    """Plan every method under every policy, and with gradient checkpointing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-classes", type=int, default=100)
    args = parser.parse_args()
    print(f"| method | trained parameters | {' | '.join(COLUMNS)} |")
    print("|---|---|" + "---|" * len(COLUMNS))
    for name in ORDER:
        step = StepConfig(batch_size=args.batch_size)
        plans = [
            plan(
                args.model,
                METHODS[name](),
                step=replace(step, **options),
                num_classes=args.num_classes,
            )
            for options in COLUMNS.values()
        ]
        peaks = " | ".join(f"{p.peak_bytes / 2**20:.0f}" for p in plans)
        print(f"| {name} | {plans[0].trainable_parameters:,} | {peaks} |", flush=True)


if __name__ == "__main__":
    main()

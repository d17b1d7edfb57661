"""Print images per second at a memory budget: the search's choice beside LoRA as it is used today.

Every row is planned first, so it fits; then a few micro-batches are run and timed in CPU seconds of
one thread, which other load on the machine does not change.

python benchmarks/budget.py [--model NAME] [--batch-size B] [--images N] [BUDGET ...]
"""

from __future__ import annotations

import argparse
import time
from functools import cache

import torch

from lowtide import METHODS, StepConfig, apply, create
from lowtide.errors import InputError
from lowtide.families import image_shape
from lowtide.planning.search import ALTERNATIVES, Choice, parse_bytes, search
from lowtide.planning.simulate import set_up_step
from lowtide.planning.step import make_optimizer, training_step

LORA = METHODS["lora"]()
BUDGETS = ["384MiB", "512MiB", "640MiB", "1GiB", "2GiB"]
RIVALS = {
    "LoRA": (False, {}),
    "LoRA + checkpointing": (True, {}),
    "lowtide, lora": (False, ALTERNATIVES),
}
"""Whether a run recomputes its blocks, and what else is searched beside the micro-batch."""


def main() -> None:
    """Search, run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=8, help="Images timed per row, at least.")
    parser.add_argument("budgets", nargs="*", default=BUDGETS)
    args = parser.parse_args()
    torch.set_num_threads(1)

    @cache
    def measured(step: StepConfig) -> float:
        return images_per_s(args.model, step, args.images)

    print("| budget | run | setting | peak MiB | predicted images/s | measured images/s |")
    print("|---|---|---|---|---|---|")
    for budget in args.budgets:
        for name, (checkpointing, vary) in RIVALS.items():
            step = StepConfig(batch_size=args.batch_size, checkpointing=checkpointing)
            choice = fastest(args.model, step, parse_bytes(budget), vary)
            if choice is None:
                print(f"| {budget} | {name} | does not fit | | | |")
                continue
            peak, rate = choice.plan.peak_bytes / 2**20, args.batch_size / choice.seconds
            speed = measured(choice.step)
            words = choice.describe().removeprefix("lora, ")
            print(
                f"| {budget} | {name} | {words} | {peak:.0f} | {rate:.2f} | {speed:.2f} |",
                flush=True,
            )


def fastest(model: str, step: StepConfig, budget: int, vary: dict) -> Choice | None:
    """The first choice of a search, if there is any."""
    try:
        return search(model, LORA, budget=budget, step=step, vary=vary, num_classes=100)[0]
    except InputError:
        return None


def images_per_s(model: str, step: StepConfig, images: int) -> float:
    """Time forward and backward of enough micro-batches, and one update, after a warm-up."""
    backbone = create(model, pretrained=False)
    tuned = apply(backbone, LORA, num_classes=100)
    set_up_step(tuned, step).train()
    optimizer, size = make_optimizer(tuned), step.micro_batch
    batches = [
        (torch.randn(size, *image_shape(backbone)), torch.zeros(size, dtype=torch.long))
        for _ in range(-(-images // size))
    ]
    training_step(tuned, optimizer, [(x[:1], labels[:1]) for x, labels in batches[:1]])
    started = time.process_time()
    training_step(tuned, optimizer, batches)
    return size * len(batches) / (time.process_time() - started)


if __name__ == "__main__":
    main()

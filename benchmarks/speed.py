"""Compare the time of a training step under each policy with the exact step, in one process.

    python benchmarks/speed.py [--model NAME] [--image-size SIDE] [--batch-size B]
        [--methods NAME ...] [--columns NAME ...] [--threads T] [--rounds R]

The steps of a method take turns, so that whatever else the machine does falls on all of them; a
number is the median over the rounds of the ratio to the exact step of the same round. Beside it,
in brackets, the ratio of processor time: what the step itself costs, however busy the machine is.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median

import torch

from lowtide import METHODS, POLICIES, apply, compress, create
from lowtide.families import image_shape
from lowtide.kernels import native
from lowtide.planning.step import make_optimizer, training_step

TIGHT = POLICIES["tight"]()
COLUMNS = {
    "exact": (POLICIES["exact"](), False),
    "s2a": (POLICIES["s2a"](), False),
    "tight": (TIGHT, False),
    "tight, attention kept": (replace(TIGHT, recompute=None), False),
    "the same, in one chunk": (replace(TIGHT, recompute=None, chunk=None), False),
    "exact, checkpointing": (POLICIES["exact"](), True),
    "blocks": (POLICIES["blocks"](), True),
    "tight, checkpointing": (TIGHT, True),
}


def steps(args: argparse.Namespace, method: str) -> dict[str, Callable[[], object]]:
    """Build a training step for each column."""
    made: dict[str, Callable[[], object]] = {}
    for name, (policy, checkpointing) in COLUMNS.items():
        torch.manual_seed(0)
        model = create(args.model, pretrained=False, image_size=args.image_size)
        tuned = apply(model, METHODS[method](), num_classes=100).to(args.device)
        tuned.checkpointing = checkpointing
        compress(tuned, policy).train()
        images = torch.randn(args.batch_size, *image_shape(model))
        batch = [(images.to(args.device), torch.arange(args.batch_size, device=args.device) % 100)]
        optimizer = make_optimizer(tuned)
        made[name] = lambda t=tuned, o=optimizer, b=batch: training_step(t, o, b)
    return made


def clock(step: Callable[[], object], device: str) -> tuple[float, float]:
    """Time one step: seconds on the wall, and of all its processors."""
    wall, processor = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def machine() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Print one row per method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--methods", nargs="+", default=["bias", "lora"])
    parser.add_argument("--columns", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--image-size", type=int, help="by default the model's")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compiled = "compiled kernels" if native.reads(torch.float32) else "plain PyTorch"
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{machine()}, {compiled}"
    print(f"{args.model}, batch {args.batch_size}, {args.threads} threads, {where}, {date.today()}")
    names = [name for name in COLUMNS if name in args.columns or name == "exact"]
    print(f"| method | exact, s | {' | '.join(names[1:])} |\n|{'---|' * (len(names) + 1)}")
    for method in args.methods:
        made = {name: step for name, step in steps(args, method).items() if name in names}
        for step in made.values():
            step()
        rounds = [{n: clock(s, args.device) for n, s in made.items()} for _ in range(args.rounds)]
        cells = [f"{median(r['exact'][0] for r in rounds):.2f}"]
        for name in names[1:]:
            wall, processor = (median(r[name][i] / r["exact"][i] for r in rounds) for i in range(2))
            cells.append(f"{wall:.2f} ({processor:.2f})")
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

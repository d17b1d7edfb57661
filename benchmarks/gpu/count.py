"""What a step would ask of a GPU, counted on tensors without storage: no card, no time.

    python -m benchmarks.gpu.count [--model NAME] [--batch-size B] [--write]

Kernels, the bytes that they read and write and the products, as the ops run on a CUDA device; and
the seconds that the data sheet of an A100 gives for them (`MACHINES` of the cost model): with 8 us
for each kernel, as a host that is slower than the card takes, and with none. `--write` keeps what
is printed where docs/gpu.md takes it from.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend

from benchmarks.gpu.page import COUNTED
from lowtide import METHODS, StepConfig, plan
from lowtide.planning import cost_model
from lowtide.planning.cost_model import MACHINES

WAYS: dict[str, dict[str, object]] = {
    "exact": {},
    "tight": {"policy": "tight"},
    "tight, batch whole": {"policy": "tight", "chunk": 0},
    "codes": {"policy": "codes"},
    "checkpointing": {"checkpointing": True},
}
FUSED = ("attention", "layer_norm", "unary")
"""Ops that run otherwise on a GPU."""


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Plan what would run on a GPU, where torch has a kernel for every attention.

    Yields:
        Nothing.
    """
    own = cost_model._moves_no_bytes
    patches = [patch(f"lowtide.ops.{op}.FUSED", {"cpu"}) for op in FUSED]
    kernel = SDPBackend.FLASH_ATTENTION.value
    patches.append(patch.object(torch, "_fused_sdp_choice", lambda *a, **k: kernel))
    # The result of a product in another shape is the same memory.
    still = patch.object(
        cost_model,
        "_moves_no_bytes",
        lambda func: own(func) or func._schema.name == "aten::_unsafe_view",
    )
    for each in (*patches, still):
        each.start()
    try:
        yield
    finally:
        for each in (*patches, still):
            each.stop()


def row(model: str, batch: int, amp: str, options: dict[str, object]) -> dict[str, float]:
    """Count a step of LoRA.

    Args:
        model: timm's name.
        batch: Images.
        amp: Precision.
        options: Of the step.

    Returns:
        Columns by name.
    """
    step = StepConfig(batch_size=batch, amp=amp, **options)  # type: ignore[arg-type]
    with as_on_a_gpu():
        planned = plan(model, METHODS["lora"](), step=step, num_classes=100)
    work, card = planned.work, MACHINES["a100"]
    return {
        "peak MiB": planned.peak_bytes / 2**20,
        "kernels": work.calls,
        "GB": work.bytes / 1e9,
        "TFLOP": work.flops / 1e12,
        "ms": 1000 * card.seconds(work),
        "ms of the card": 1000 * replace(card, call_s=0.0).seconds(work),
    }


def table(model: str, batch: int, amp: str) -> str:
    """Write a table.

    Args:
        model: timm's name.
        batch: Images.
        amp: Precision.

    Returns:
        Markdown; seconds to those of exact.
    """
    heads = ("peak MiB", "kernels", "GB", "TFLOP", "to exact", "to exact, the card alone")
    lines = [f"| {model}, batch {batch}, {amp} | {' | '.join(heads)} |", "|---" * 7 + "|"]
    exact: dict[str, float] = {}
    for name, options in WAYS.items():
        found = row(model, batch, amp, options)
        exact = exact or found
        cells = [f"{found[h]:.0f}" for h in heads[:2]] + [f"{found[h]:.2f}" for h in heads[2:4]]
        cells += [f"{found[n] / exact[n]:.2f}" for n in ("ms", "ms of the card")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print a table for each precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    tables = "\n\n".join(table(args.model, args.batch_size, amp) for amp in ("bf16", "no"))
    print(tables)
    if args.write:
        COUNTED.write_text(tables + "\n")


if __name__ == "__main__":
    main()

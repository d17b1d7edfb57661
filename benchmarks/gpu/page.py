"""docs/gpu.md from rows: nothing in it is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS

HEAD = """# On a GPU

What only a GPU can show, by one command, at most eight minutes at a time, which goes on where it
stopped:

    python -m benchmarks.gpu

This page is written by it from `results/gpu/rows.jsonl`. Weights are random unless `--data` gives
them; ms are medians of 3 steps, host ms what of that passed until the host had asked for all the
work (where the two are equal the card waited), MiB what `torch.cuda.max_memory_allocated` says,
deviation that of the peak from the plan. `batch whole` is `--chunk 0`. What failed is tried again.
"""
NOTHING = """
**Nothing on this page was measured: no card was at hand.** The command refuses without one, and
`python -m benchmarks.gpu --device cpu --smoke` runs tiny rows of every part on a CPU, to see
that it works. The Triton kernels are tested by their interpreter and compiled for a GPU
(`tests/kernels`), not run on one.
"""
COUNTED = Path(__file__).parents[2] / "results" / "gpu" / "count.md"
COUNTS = """
## What the counts say

Counted, not measured (`python -m benchmarks.gpu.count`): what a step of LoRA asks of a GPU, and the
time to that of `exact` by the data sheet of an A100, with 8 us for each kernel and without.

{tables}
`tight` runs eight images at a time, and makes queries, keys and values again in backward: on a GPU
most of its time would pass in starting small kernels. `--chunk 0` runs batches whole; `codes` does
that too, keeps queries, keys and values in codes of their own, and computes no product twice.
"""
ABOUT = {"card", "torch", "part", "row", "took"}


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Write the page.

    Args:
        rows: What was measured.

    Returns:
        Markdown.
    """
    counts = COUNTS.format(tables=COUNTED.read_text())
    if not rows:
        return HEAD + NOTHING + counts
    blocks = [HEAD]
    for card in dict.fromkeys(r["card"] for r in rows):
        mine = [*{r["row"]: r for r in rows if r["card"] == card}.values()]
        versions = ", ".join(dict.fromkeys(r["torch"] for r in mine))
        blocks.append(f"## {card}, torch {versions}\n")
        for part, title in PARTS.items():
            found = [_compared(r, mine) for r in mine if r["part"] == part]
            blocks.append(f"### {title}\n")
            blocks.append(_table(found) if found else "Not measured.\n")
            if part == "cost_model":
                blocks += [_machine(r) for r in found if "failed" not in r]
    return "\n".join([*blocks, counts])


def _compared(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add the ratio to the exact step of the same model, method, batch and precision."""
    same, _, name = row["row"].rpartition(": ")
    exact = next((r for r in rows if same and r["row"] == f"{same}: exact"), None)
    if exact is None or "ms" not in row or "ms" not in exact or name == "exact":
        return row
    return {**row, "to exact": f"{row['ms'] / exact['ms']:.2f}"}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(k for r in rows for k in r if k not in ABOUT))
    lines = [f"| row | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for r in rows:
        cells = [_text(r[c]) if c in r else "" for c in columns]
        lines.append(f"| {r['row']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def _machine(row: dict[str, Any]) -> str:
    """The row of `MACHINES` in planning/cost_model.py."""
    fields = ("flops_per_s", "low_flops_per_s", "bytes_per_s", "call_s")
    numbers = ", ".join(f"{row[f]:.3g}" for f in fields)
    return f'For the table of machines: `"{row["card"]}": Machine({numbers})`\n'

"""Compare many adapters on one backbone with as many passes, in one process.

    python benchmarks/tasks.py [--model NAME] [--rows FILE] [--threads T] [--rounds R]

What is compared takes turns, so that whatever else the machine does falls on all of it; a number
is the median over the rounds of the ratio within a round, in brackets that of processor time. Each
row is kept in the file when it is finished, and not measured again. Weights are random.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lowtide import METHODS, Method, MultiAdapter, Tuned, create
from lowtide.families import image_shape

Runs = dict[str, Callable[[], object]]
TASKS, MIXED = 19, 16
"""Adapters asked about one image, as many as VTAB-1k has; and adapters in a mixed batch."""


def saved(model: str, method: Method, count: int, folder: Path) -> dict[str, Path]:
    """Save adapters whose numbers were moved as by training."""
    tuned = Tuned(backbone(model))
    for i in range(count):
        tuned.add_adapter(f"task{i}", method, num_classes=10 + i)
        tuned.set_adapter(f"task{i}")
        for p in tuned.parameters():
            if p.requires_grad:
                p.data += 0.02 * torch.randn_like(p)
        tuned.save_pretrained(folder / f"task{i}")
    return {f"task{i}": folder / f"task{i}" for i in range(count)}


def images(model: str, batch: int, device: str) -> Tensor:
    """Noise of the size that a model takes."""
    with torch.device("meta"):
        shape = image_shape(create(model, pretrained=False))
    return torch.randn(batch, *shape, device=device)


def backbone(model: str) -> nn.Module:
    """Make the same random weights every time."""
    torch.manual_seed(0)
    return create(model, pretrained=False)


def one_of(model: str, folder: Path, device: str) -> Tuned:
    """Load one adapter alone."""
    tuned = Tuned(backbone(model)).eval()
    tuned.load_adapter(folder, "one")
    return tuned.to(device)


def all_tasks(model: str, method: Method, batch: int, folder: Path, device: str) -> Runs:
    """Ask all adapters about the same images: together, one alone, and one after another."""
    folders = saved(model, method, TASKS, folder)
    together, one, x = (
        MultiAdapter(backbone(model), folders).to(device),
        one_of(model, folders["task0"], device),
        images(model, batch, device),
    )
    return {
        "together": lambda: together(x),
        "one alone": lambda: one(x),
        "one after another": lambda: [one(x) for _ in range(TASKS)],
    }


def mixed(model: str, method: Method, batch: int, folder: Path, device: str) -> Runs:
    """Ask one adapter about each image: in one batch, by peft, and in a loop over adapters."""
    folders = saved(model, method, MIXED, folder)
    together, one, x = (
        MultiAdapter(backbone(model), folders).to(device),
        one_of(model, folders["task0"], device),
        images(model, batch, device),
    )
    names = [f"task{i % MIXED}" for i in range(batch)]
    groups = [x[i::MIXED] for i in range(MIXED)]
    runs: Runs = {
        "together": lambda: together.mixed(x, names),
        "one alone": lambda: one(x),
        "one after another": lambda: [one(part) for part in groups],
    }
    if find_spec("peft"):
        theirs = _peft(model, names).to(device)
        runs["peft"] = lambda: theirs(x, adapter_names=names)
    return runs


def _peft(model: str, names: list[str]) -> nn.Module:
    """The same adapters in peft, on the fused map, without classifiers, which it mixes up."""
    import peft

    plain = backbone(model)
    plain.reset_classifier(0)
    config = peft.LoraConfig(r=8, target_modules=["qkv"], init_lora_weights=False)
    wrapped: Any = peft.get_peft_model(plain, config, adapter_name="task0")
    for name in dict.fromkeys(names):
        if name != "task0":
            wrapped.add_adapter(name, config)
    return wrapped.eval()


ROWS: dict[str, Callable[[str, Path, str], Runs]] = {
    **{
        f"{TASKS} {name}, batch {batch}": partial(
            lambda name, options, batch, model, folder, device: all_tasks(
                model, METHODS[name](**options), batch, folder, device
            ),
            name,
            options,
            batch,
        )
        for name, options in (("dtl", {"start_block": 7}), ("linear", {}), ("lst", {}))
        for batch in (1, 8)
    },
    f"{MIXED} lora, mixed batch 32": lambda model, folder, device: mixed(
        model, METHODS["lora"](), 32, folder, device
    ),
}


def clock(run: Callable[[], object]) -> tuple[float, float]:
    """Time one call: seconds on the wall, and of all processors."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


@torch.no_grad()
def measure(runs: Runs, rounds: int) -> dict[str, Any]:
    """Let the runs take turns."""
    for run in runs.values():
        run()
    taken = [{n: clock(run) for n, run in runs.items()} for _ in range(rounds)]
    return {
        "seconds": {n: median(t[n][0] for t in taken) for n in runs},
        "wall": {n: median(t["together"][0] / t[n][0] for t in taken) for n in runs},
        "processor": {n: median(t["together"][1] / t[n][1] for t in taken) for n in runs},
    }


def main() -> None:
    """Measure the rows that the file lacks, and print all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--rows", type=Path, default=Path("results/tasks.jsonl"))
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = args.rows.read_text().splitlines() if args.rows.exists() else []
    found = {(r["model"], r["row"], r["threads"]): r for r in map(json.loads, lines)}
    for name in args.only:
        if (args.model, name, args.threads) in found:
            continue
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(ROWS[name](args.model, Path(folder), "cpu"), args.rounds)
        row = {"model": args.model, "row": name, "threads": args.threads, **measured}
        found[args.model, name, args.threads] = row
        with args.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        gc.collect()
    print(
        "| adapters | together, s | to one alone | to one after another | to peft |\n"
        "|---|---|---|---|---|"
    )
    for (model, name, threads), row in found.items():
        if (model, threads) == (args.model, args.threads):
            others = ("one alone", "one after another", "peft")
            cells = [_cell(row, other) for other in others]
            print(f"| {name} | {row['seconds']['together']:.2f} | {' | '.join(cells)} |")


def _cell(row: dict[str, Any], other: str) -> str:
    if other not in row["wall"]:
        return ""
    return f"{row['wall'][other]:.2f} ({row['processor'][other]:.2f})"


if __name__ == "__main__":
    main()

"""Compress one model of every module of timm, and write down what each keeps: docs/zoo.md.

    python -m benchmarks.zoo [--modules NAME ...] [--log FILE] [--seconds S] [--write docs/zoo.md]

Of each module the model with the fewest parameters (timm's own test models left out), random
weights, all of them trained, two images of 128 pixels (of the model's own size where it takes no
other). Bytes: every storage but the weights that is alive after the forward. Equal: the forward's
output and its buffers, bit for bit. Cosine: of the whole gradient for a random cotangent, batch
norms on the statistics of an earlier batch, for over two images the exact gradient is not stable
either.

Each model runs in a process of its own, for at most S seconds of processor time; what it gives, or
how it fails, is a line of FILE, and a module that has a line is not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pkgutil
import resource
import signal
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import timm
import torch
from timm.models import is_model_in_modules
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowtide import compress
from lowtide.planning.meter import Meter
from lowtide.versions import on_meta

SIDE, IMAGES = 128, 2
TRIES: tuple[tuple[dict[str, int], int | None], ...] = (
    ({"img_size": SIDE}, SIDE),
    ({}, SIDE),
    ({"img_size": SIDE - 2}, SIDE - 2),
    ({}, None),
)
"""Arguments of a model and side of its images, the first that it takes; 126 is 9 patches of 14."""
TESTS = "test_"
TIMMS = sorted(
    {m.name for m in pkgutil.iter_modules(timm.models.__path__)} & {*timm.list_modules()}
)
# Not plain fork: a child of a process whose threads have run waits for them for ever.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["timm", "lowtide"])


def smallest(module: str) -> str:
    """Name the model with the fewest parameters."""
    sizes = {}
    for name in timm.list_models(module=module):
        if is_model_in_modules(name, [module]) and not name.startswith(TESTS):
            with on_meta():
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
    return min(sizes, key=lambda name: sizes[name])


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Make a model that takes small images if it can, and the images."""
    failed: Exception | None = None
    for options, side in TRIES:
        try:
            torch.manual_seed(0)
            model = timm.create_model(name, **options).train()
            channels, *size = model.default_cfg["input_size"]
            x = torch.randn(IMAGES, channels, *([side, side] if side else size))
            with torch.no_grad():
                model(x)
            return model, x
        except Exception as error:
            failed = error
    assert failed is not None
    raise failed


def tensors(result: Any) -> list[Tensor]:
    """List the tensors of an output."""
    return [result] if isinstance(result, Tensor) else [t for r in result for t in tensors(r)]


class Step(NamedTuple):
    """What a step gives."""

    outputs: list[Tensor]
    alive: int
    gradients: list[Tensor | None]


def step(model: nn.Module, x: Tensor, policy: str, backward: bool = True) -> Step:
    """Give outputs and buffers, the bytes alive after the forward, and the gradients."""
    before = {name: b.clone() for name, b in model.named_buffers()}
    compress(model, policy)
    model.zero_grad()
    torch.manual_seed(1)
    with Meter(model) as meter:
        outputs = tensors(model(x))
        alive = meter.now
    found = [t.detach().clone() for t in (*outputs, *model.buffers())]
    if backward:
        torch.manual_seed(2)
        torch.autograd.backward(outputs, [torch.randn_like(y) for y in outputs])
    gradients = [p.grad for p in model.parameters()]
    with torch.no_grad():
        for name, b in model.named_buffers():
            b.copy_(before[name])
    return Step(found, alive.peak_bytes - alive.parts["weights"], gradients)


def settle(model: nn.Module, x: Tensor) -> None:
    """Give every batch norm the statistics of these images, and freeze them there."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(x)
    for norm in norms:
        norm.eval()


def measure(module: str) -> dict[str, Any]:
    """Run the smallest model of a module under each policy."""
    name = smallest(module)
    row: dict[str, Any] = {"module": module, "model": name}
    model, x = build(name)
    row |= {"side": x.shape[-1], "parameters": sum(p.numel() for p in model.parameters())}
    plain = step(model, x, "exact", backward=False)
    row["exact"] = plain.alive
    there = {}
    for policy in ("tight", "s2a"):
        given = step(model, x, policy)
        row[policy] = given.alive
        row[f"{policy}_equal"] = all(map(torch.equal, plain.outputs, given.outputs))
        there[policy] = [g is not None for g in given.gradients]
        del given  # a model of 400 million parameters has 1.6 GB of them
    compress(model, "exact")
    settle(model, x)
    wanted = step(model, x, "exact").gradients
    for policy, found in there.items():
        row[f"{policy}_missing"] = sum(
            f != (w is not None) for f, w in zip(found, wanted, strict=True)
        )
    row["cosine"] = cosine(wanted, step(model, x, "tight").gradients)
    return row


def cosine(a: list[Tensor | None], b: list[Tensor | None]) -> float:
    """Compare two gradients, parameter by parameter, so that only one is wide at a time."""
    products = torch.zeros(3, dtype=torch.float64)
    for x, y in zip(a, b, strict=True):
        if x is not None and y is not None:
            x, y = x.flatten().double(), y.flatten().double()
            products += torch.stack([x @ y, x @ x, y @ y])
    return float(products[0] / (products[1] * products[2]).sqrt())


def answer(its: Connection, module: str, seconds: int) -> None:
    """Send a module's row to the process that asked, if that takes no more than so long."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    its.send(here(module))


def run(module: str, seconds: int) -> dict[str, Any]:
    """Measure in a process of its own, which may die."""
    ours, its = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=answer, args=(its, module, seconds))
    process.start()
    its.close()
    try:
        row: dict[str, Any] = ours.recv()
        return row
    except EOFError:
        process.join()
        late = process.exitcode == -signal.SIGXCPU
        why = f"not done after {seconds} s" if late else f"ended with {process.exitcode}"
        return {"module": module, "error": why}
    finally:
        process.join()


def here(module: str) -> dict[str, Any]:
    """Measure, or say why not."""
    try:
        return measure(module)
    except Exception as error:
        traceback.print_exc()
        return {"module": module, "error": f"{type(error).__name__}: {error}"[:200]}


def page(rows: list[dict[str, Any]]) -> str:
    """Write the table."""
    done = [r for r in rows if "error" not in r]
    ratios = {p: [r["exact"] / r[p] for r in done] for p in ("tight", "s2a")}
    cosines = [r["cosine"] for r in done]
    same = {p: sum(r[f"{p}_equal"] and not r[f"{p}_missing"] for r in done) for p in ratios}
    lines = [
        "# Compression on every module of timm",
        "",
        f"By `python -m benchmarks.zoo`, timm {timm.__version__}, torch {torch.__version__}. Of",
        f"each of timm's {len(rows)} modules the model with the fewest parameters, random weights,",
        f"all trained, {IMAGES} images of the side given, on a CPU in float32. MiB: what is",
        "alive after the forward besides the weights. Equal: outputs and buffers bit for bit, and",
        "every gradient there. Cosine: of the whole gradient under `tight` with the exact one,",
        "batch norms on fixed statistics.",
        "",
        "| | `tight` | `s2a` |",
        "|---|---|---|",
    ]
    counts = {
        "at most half of exact": lambda p: sum(r >= 2 for r in ratios[p]),
        "more than exact": lambda p: sum(r < 1 for r in ratios[p]),
        "forward equal, no gradient missing": lambda p: same[p],
        "median of exact / kept": lambda p: f"{median(ratios[p]):.2f}",
        "failed": lambda p: len(rows) - len(done),
    }
    lines += [f"| {name} | {count('tight')} | {count('s2a')} |" for name, count in counts.items()]
    lines += [
        "",
        f"The cosine is {median(cosines):.4f} in the median and {min(cosines):.4f} at the least.",
        "",
        "| module | model | side | exact, MiB | `tight` | exact / `tight` | exact / `s2a` | equal |"
        " cosine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: r["module"]):
        if "error" in r:
            lines.append(f"| {r['module']} | {r.get('model', '')} | {r['error']} |" + " |" * 6)
            continue
        equal = all(r[f"{p}_equal"] and not r[f"{p}_missing"] for p in ratios)
        cells = (
            r["module"],
            r["model"],
            r["side"],
            f"{r['exact'] / 2**20:.1f}",
            f"{r['tight'] / 2**20:.1f}",
            *(f"{r['exact'] / r[p]:.2f}" for p in ratios),
            "yes" if equal else "no",
            f"{r['cosine']:.4f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join((*lines, ""))


def main() -> None:
    """Run what has no line yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", nargs="+", default=TIMMS)
    parser.add_argument("--log", type=Path, default=Path("build/zoo.jsonl"))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--write", type=Path, help="the page to write")
    args = parser.parse_args()
    args.log.parent.mkdir(parents=True, exist_ok=True)
    lines = args.log.read_text().splitlines() if args.log.exists() else []
    rows = {r["module"]: r for r in map(json.loads, lines)}
    for module in args.modules:
        if module not in rows:
            rows[module] = run(module, args.seconds)
            with args.log.open("a") as log:
                print(json.dumps(rows[module]), file=log)
            print(json.dumps(rows[module]), flush=True)
    if args.write:
        args.write.write_text(page(list(rows.values())))


if __name__ == "__main__":
    main()

"""What a row measures."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import tasks
from lowtide import METHODS, POLICIES, StepConfig, apply, compress, create, plan
from lowtide.dense.batch import Batch
from lowtide.dense.options import TaskConfig
from lowtide.dense.plans import plan_dense
from lowtide.dense.pyramid import backbone_path
from lowtide.dense.tasks import TASKS
from lowtide.families import image_shape
from lowtide.planning.loss import CROSS_ENTROPY, Loss, of_outputs
from lowtide.planning.search import parse_bytes, search
from lowtide.planning.simulate import set_up_step
from lowtide.planning.step import make_optimizer, micro_batches, training_step
from lowtide.tuning.tuned import Tuned

REPOSITORY = Path(__file__).parents[2]
Found = dict[str, Any]
"""What a row found, by column."""


@dataclass
class Setting:
    """Where rows run.

    Attributes:
        device: `cuda` or `cpu`.
        data: Folder of weights, or None.
    """

    device: str
    data: Path | None = None

    @property
    def card(self) -> str:
        """Name of the device."""
        return torch.cuda.get_device_name() if self.device == "cuda" else "cpu"

    def clear(self) -> None:
        """Give memory back."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def clock(self, work: Callable[[], object]) -> tuple[float, float]:
        """Time a call in seconds, to the end of what it started, and until it came back."""
        self.wait()
        start = time.perf_counter()
        work()
        asked = time.perf_counter() - start
        self.wait()
        return time.perf_counter() - start, asked

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def model(self, name: str, **options: Any) -> nn.Module:
        """Make a backbone on the device."""
        weights = self.data / f"{name}.safetensors" if self.data else None
        if weights is not None and weights.exists():
            return create(name, checkpoint=weights, **options).to(self.device)
        torch.manual_seed(0)
        return create(name, pretrained=False, **options).to(self.device)


def tests(file: str, setting: Setting, some: str = "cpu", seconds: float = 400) -> Found:
    """Run the tests of a file that need a card, in a process of their own; without one, some."""
    chosen = ["-m", "gpu"] if setting.device == "cuda" else ["-k", some]
    asked = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen, file]
    done = subprocess.run(
        asked, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds, check=False
    )
    lines = done.stdout.strip().splitlines()
    faults = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if done.returncode:
        raise AssertionError("; ".join(faults or lines[-1:]))
    return {"passed": lines[-1] if lines else ""}


def gradients(model: str, policy: str, setting: Setting) -> Found:
    """Forward and backward of a compressed model on the device, against those on the CPU."""
    torch.set_float32_matmul_precision("highest")
    found: list[tuple[Tensor, Tensor]] = []
    for where, name in ((setting.device, policy), ("cpu", policy), ("cpu", "exact")):
        torch.manual_seed(0)
        tuned = apply(create(model, pretrained=False), METHODS["full"](), num_classes=7)
        compress(tuned.to(where), POLICIES[name]()).train()
        y = tuned(torch.randn(4, *image_shape(tuned.backbone)).to(where))
        y.logsumexp(-1).sum().backward()
        flat = [p.grad.flatten().cpu() for p in tuned.parameters() if p.grad is not None]
        found.append((y.detach().cpu(), torch.cat(flat).double()))
    (here, mine), (there, theirs), (_, exact) = found
    return {
        "forward": float((here - there).abs().max()),
        "cosine to the CPU": float(torch.cosine_similarity(mine, theirs, dim=0)),
        "cosine to exact": float(torch.cosine_similarity(mine, exact, dim=0)),
    }


def step(
    model: str,
    batch: int,
    amp: str,
    method: str,
    options: dict[str, Any],
    setting: Setting,
    pixels: int | None = None,
) -> Found:
    """Time a training step, and hold its peak against the plan."""
    torch.set_float32_matmul_precision("high")  # TF32 where the card has it
    options = dict(options)
    images = options.pop("images", None)
    wanted = StepConfig(batch_size=batch, amp=amp, **options)  # type: ignore[arg-type]
    if images:
        wanted = replace(wanted, accumulate=max(1, batch // images))
    size = {"image_size": pixels} if pixels else {}
    planned = plan(model, METHODS[method](), step=wanted, num_classes=100, **size).peak_bytes
    tuned = apply(setting.model(model, **size), METHODS[method](), num_classes=100)
    set_up_step(tuned.to(setting.device), wanted).train()
    x = torch.randn(batch, *image_shape(tuned.backbone), device=setting.device)
    labels = torch.arange(batch, device=setting.device) % 100
    parts = micro_batches(x, labels, wanted.accumulate)
    return stepped(tuned, parts, wanted, planned, setting)


def detector_step(model: str, pixels: int, options: dict[str, Any], setting: Setting) -> Found:
    """Time a step of Mask R-CNN on a backbone, one image, and hold its peak against the plan."""
    torch.set_float32_matmul_precision("high")
    wanted = TaskConfig(task="instances", batch_size=1, amp="bf16", **options)  # type: ignore[arg-type]
    names, method = tuple(map(str, range(80))), METHODS["lora"]()
    sizes: Any = {"num_classes": len(names), "image_size": pixels}
    planned = plan_dense(model, method, step=wanted, **sizes).peak_bytes
    task = TASKS["instances"](names, pixels, (0.5,) * 3, (0.5,) * 3, wanted)
    whole = task.model(setting.model(model, image_size=pixels)).to(setting.device)
    tuned = set_up_step(apply(whole, method, backbone=backbone_path(whole)), wanted).train()
    given, targets = task.example(1, (3, pixels, pixels))
    batch = Batch(torch.rand(1, 3, pixels, pixels), given.objects).to(torch.device(setting.device))
    parts = [(batch, targets.to(setting.device))]
    return stepped(tuned, parts, wanted, planned, setting, of_outputs(task.loss))


def stepped(
    tuned: Tuned,
    parts: Sequence[tuple[Any, Any]],
    wanted: StepConfig,
    planned: int,
    setting: Setting,
    loss: Loss = CROSS_ENTROPY,
) -> Found:
    """Take steps: ms to the end of the work, ms until the host has asked for all of it, MiB."""
    optimizer = make_optimizer(tuned, wanted.opt)
    once = partial(training_step, tuned, optimizer, parts, loss=loss, amp=wanted.amp)
    once()
    found: Found = {"planned MiB": round(planned / 2**20, 1)}
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    both = [setting.clock(once) for _ in range(3)]
    if setting.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        found |= {"MiB": round(peak / 2**20, 1), "deviation": round(peak / planned - 1, 4)}
    ended, asked = (round(1000 * median(times), 2) for times in zip(*both, strict=True))
    return {**found, "ms": ended, "host ms": asked}


def at_budget(model: str, budget: str, step_size: int, setting: Setting) -> Found:
    """Search the fastest step within a budget, and time it."""
    torch.set_float32_matmul_precision("high")
    wanted, limit = StepConfig(batch_size=step_size), parse_bytes(budget)
    machine = "a100" if setting.device == "cuda" else "cpu"
    choice = search(
        model, METHODS["lora"](), budget=limit, step=wanted, num_classes=100, machine=machine
    )[0]
    tuned = apply(setting.model(model), METHODS["lora"](), num_classes=100)
    set_up_step(tuned.to(setting.device), choice.step).train()
    batch = choice.step.batch_size
    x = torch.randn(batch, *image_shape(tuned.backbone), device=setting.device)
    parts = micro_batches(x, torch.zeros_like(x[:, 0, 0, 0]).long(), choice.step.accumulate)
    once = partial(training_step, tuned, make_optimizer(tuned), parts, amp=choice.step.amp)
    once()
    seconds = median(setting.clock(once)[0] for _ in range(3))
    words = f"{choice.step.policy}, {choice.step.accumulate} parts"
    words += ", checkpointing" if choice.step.checkpointing else ""
    return {"choice": words, "images/s": round(batch / seconds, 1)}


def many_tasks(model: str, name: str, rounds: int, setting: Setting) -> Found:
    """Run a row of benchmarks/tasks.py on the device."""
    with tempfile.TemporaryDirectory() as folder:
        measured = tasks.measure(tasks.ROWS[name](model, Path(folder), setting.device), rounds)
    return {f"to {n}": round(r, 3) for n, r in measured["wall"].items() if n != "together"}


def cost_model(size: int, setting: Setting) -> Found:
    """Measure what the cost model asks of a machine: products, copies, and calls."""
    found = {}
    for field, dtype in (("flops_per_s", torch.float32), ("low_flops_per_s", torch.bfloat16)):
        a = torch.randn(size, size, device=setting.device, dtype=dtype)
        found[field] = 2 * size**3 / fastest(setting, lambda a=a: a @ a)
    x = torch.randn(size * size, device=setting.device)
    found["bytes_per_s"] = 2 * x.nbytes / fastest(setting, x.clone)
    few, calls = torch.zeros(1, device=setting.device), 200
    found["call_s"] = fastest(setting, lambda: [few.add_(1) for _ in range(calls)]) / calls
    return {field: float(f"{value:.3g}") for field, value in found.items()}


def fastest(setting: Setting, work: Callable[[], object]) -> float:
    """Time a call in seconds, the first one aside."""
    work()
    return min(setting.clock(work)[0] for _ in range(10))

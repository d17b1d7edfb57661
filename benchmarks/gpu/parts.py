"""The rows of each part, in the order they are worth measuring."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import one_image, tasks
from lowtide import METHODS, POLICIES, StepConfig, apply, compress, create, plan
from lowtide.codecs.affine import Affine
from lowtide.codecs.base import Residue
from lowtide.families import image_shape
from lowtide.planning.search import parse_bytes, search
from lowtide.planning.simulate import set_up_step
from lowtide.planning.step import make_optimizer, micro_batches, training_step

PARTS = {
    "kernels": "(a) Kernels against their references",
    "steps": "(b) A training step",
    "budget": "(c) Images per second at a budget",
    "one_image": "(d) One large image",
    "tasks": "(e) Many tasks on one backbone",
    "cost_model": "(f) The cost model",
}
MODELS = ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base")
STEPS: dict[str, dict[str, Any]] = {
    "exact": {},
    "tight": {"policy": "tight"},
    "checkpointing": {"checkpointing": True},
    "tight, checkpointing": {"policy": "tight", "checkpointing": True},
    **{f"{n} images at a time": {"images": n} for n in (8, 4, 2, 1)},
}
STEP_METHODS = ("lora", "bias", "full", "ssf", "dtl", "s2a")
BUDGETS = ("512MiB", "1GiB", "2GiB", "4GiB", "8GiB")
LARGE = ("vit_large_patch14_dinov2", "samvit_huge_patch16", "vit_giant_patch14_dinov2")


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

    def clock(self, work: Callable[[], object]) -> float:
        """Time a call in seconds, to the end of what it started."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

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


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        part: A key of `PARTS`.
        name: Unlike any other's.
        seconds: About how long it takes; it is begun only if that is left.
        run: Measures it.
    """

    part: str
    name: str
    seconds: float
    run: Callable[[Setting], dict[str, Any]]


def codec(bits: int, n: int, setting: Setting) -> dict[str, Any]:
    """Pack and unpack on the device and on the CPU."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    kept = Affine(bits)
    here, there = x.to(setting.device), x
    packed = [kept.pack(Residue(t)) for t in (here, there)]
    back = [kept.unpack(p, x.shape, x.dtype).cpu() for p in packed]
    same = [bool(torch.equal(a.cpu(), b)) for a, b in zip(*packed, strict=True)]
    return {"difference": float((back[0] - back[1]).abs().max()), "same bits": all(same)}


def gradients(model: str, policy: str, setting: Setting) -> dict[str, Any]:
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
) -> dict[str, Any]:
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
    optimizer = make_optimizer(tuned, wanted.opt)
    once = partial(training_step, tuned, optimizer, parts, amp=amp)
    once()
    found: dict[str, Any] = {"planned MiB": round(planned / 2**20, 1)}
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = median(setting.clock(once) for _ in range(3))
    if setting.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        found |= {"MiB": round(peak / 2**20, 1), "deviation": round(peak / planned - 1, 4)}
    return {**found, "ms": round(1000 * seconds, 2)}


def at_budget(model: str, budget: str, step_size: int, setting: Setting) -> dict[str, Any]:
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
    seconds = median(setting.clock(once) for _ in range(3))
    words = f"{choice.step.policy}, {choice.step.accumulate} parts"
    words += ", checkpointing" if choice.step.checkpointing else ""
    return {"choice": words, "images/s": round(batch / seconds, 1)}


def many_tasks(model: str, name: str, rounds: int, setting: Setting) -> dict[str, Any]:
    """Run a row of benchmarks/tasks.py on the device."""
    with tempfile.TemporaryDirectory() as folder:
        measured = tasks.measure(tasks.ROWS[name](model, Path(folder), setting.device), rounds)
    return {f"to {n}": round(r, 3) for n, r in measured["wall"].items() if n != "together"}


def cost_model(size: int, setting: Setting) -> dict[str, Any]:
    """Measure what the cost model asks of a machine: products, copies, and calls."""
    found = {}
    for field, dtype in (("flops_per_s", torch.float32), ("low_flops_per_s", torch.bfloat16)):
        a = torch.randn(size, size, device=setting.device, dtype=dtype)
        found[field] = 2 * size**3 / _fastest(setting, lambda a=a: a @ a)
    x = torch.randn(size * size, device=setting.device)
    found["bytes_per_s"] = 2 * x.nbytes / _fastest(setting, x.clone)
    few, calls = torch.zeros(1, device=setting.device), 200
    found["call_s"] = _fastest(setting, lambda: [few.add_(1) for _ in range(calls)]) / calls
    return {field: float(f"{value:.3g}") for field, value in found.items()}


def _fastest(setting: Setting, work: Callable[[], object]) -> float:
    work()
    return min(setting.clock(work) for _ in range(10))


def rows_of(smoke: bool = False) -> list[Row]:
    """List every row, the most telling of each part first, parts taking turns.

    Args:
        smoke: Whether rows are tiny.

    Returns:
        The rows.
    """
    made = list(_smoke() if smoke else _every())
    order: dict[str, int] = {}
    ranked = []
    for row in made:
        order[row.part] = order.get(row.part, 0) + 1
        ranked.append((order[row.part], list(PARTS).index(row.part), row))
    return [row for *_, row in sorted(ranked, key=lambda r: r[:2])]


def _every() -> Iterator[Row]:
    for bits in (1, 2, 4, 8):
        yield Row("kernels", f"affine, {bits} bits", 2, partial(codec, bits, 2**20 + 37))
    for policy in ("s2a", "tight"):
        name = f"gradients of {policy}"
        yield Row("kernels", name, 10, partial(gradients, "vit_micro_patch4_32", policy))
    for method in STEP_METHODS:
        for batch, amp in ((32, "bf16"), (32, "no"), (128, "bf16"), (128, "no")):
            for model in MODELS:
                for name, options in STEPS.items():
                    run = partial(step, model, batch, amp, method, options)
                    words = f"{model}, {method}, batch {batch}, {_words(amp)}: {name}"
                    yield Row("steps", words, 15, run)
    for budget in BUDGETS:
        run = partial(at_budget, "vit_base_patch16_224", budget, 32)
        yield Row("budget", f"vit_base_patch16_224, lora, {budget}", 60, run)
    for model in LARGE:
        pixels, method = one_image.ROWS[model]
        for name, options in one_image.COLUMNS.items():
            run = partial(step, model, 1, "bf16", method, options, pixels=pixels)
            yield Row("one_image", f"{model} at {pixels}, {method}: {name}", 60, run)
    for name in tasks.ROWS:
        run = partial(many_tasks, "vit_base_patch16_224", name, 5)
        yield Row("tasks", f"vit_base_patch16_224, {name}", 30, run)
    yield Row("cost_model", "products, copies, calls", 5, partial(cost_model, 8192))


def _smoke() -> Iterator[Row]:
    tiny = "vit_micro_patch4_32"
    yield Row("kernels", "affine, 4 bits", 1, partial(codec, 4, 1000))
    yield Row("kernels", "gradients of tight", 1, partial(gradients, tiny, "tight"))
    for name in ("exact", "tight", "1 images at a time"):
        run = partial(step, tiny, 4, "no", "lora", STEPS[name])
        yield Row("steps", f"{tiny}, lora, batch 4, fp32/TF32: {name}", 1, run)
    yield Row("budget", f"{tiny}, lora, 64MiB", 1, partial(at_budget, tiny, "64MiB", 2))
    run = partial(step, tiny, 1, "no", "lora", {}, pixels=64)
    yield Row("one_image", f"{tiny} at 64, lora: exact", 1, run)
    yield Row(
        "tasks",
        f"{tiny}, 19 linear, batch 1",
        1,
        partial(many_tasks, tiny, "19 linear, batch 1", 1),
    )
    yield Row("cost_model", "products, copies, calls", 1, partial(cost_model, 64))


def _words(amp: str) -> str:
    return "fp32/TF32" if amp == "no" else amp

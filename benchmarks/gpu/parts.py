"""The rows of each part, in the order they are worth measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import one_image, tasks
from benchmarks.gpu import kernels, works
from benchmarks.gpu.works import Setting
from lowtide import POLICIES

PARTS = {
    "tests": "(a) Tests that need a card",
    "kernels": "(b) Kernels against their references",
    "steps": "(c) A training step",
    "budget": "(d) Images per second at a budget",
    "one_image": "(e) One large image",
    "dense": "(f) Mask R-CNN on one large image",
    "tasks": "(g) Many tasks on one backbone",
    "cost_model": "(h) The cost model",
}
MODELS = ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base")
STEPS: dict[str, dict[str, Any]] = {
    "exact": {},
    "tight": {"policy": "tight"},
    "tight, batch whole": {"policy": "tight", "chunk": 0},
    "checkpointing": {"checkpointing": True},
    "tight, checkpointing": {"policy": "tight", "checkpointing": True},
    "codes": {"policy": "codes"},
    "blocks": {"policy": "blocks"},
    "s2a": {"policy": "s2a"},
    **{f"{n} images at a time": {"images": n} for n in (8, 4, 2, 1)},
}
DENSE = ("exact", "tight", "codes", "checkpointing", "tight, checkpointing")
STEP_METHODS = ("lora", "bias", "full", "ssf", "dtl", "s2a")
BUDGETS = ("512MiB", "1GiB", "2GiB", "4GiB", "8GiB")
LARGE = ("vit_large_patch14_dinov2", "samvit_huge_patch16", "vit_giant_patch14_dinov2")


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
    for file in files_with_gpu_tests():
        yield Row("tests", file, 90, partial(works.tests, file))
    yield from _kernels()
    for method in STEP_METHODS:
        for batch, amp in ((32, "bf16"), (32, "no"), (128, "bf16"), (128, "no")):
            for model in MODELS:
                for name, options in STEPS.items():
                    run = partial(works.step, model, batch, amp, method, options)
                    words = f"{model}, {method}, batch {batch}, {_words(amp)}: {name}"
                    yield Row("steps", words, 15, run)
    for budget in BUDGETS:
        run = partial(works.at_budget, "vit_base_patch16_224", budget, 32)
        yield Row("budget", f"vit_base_patch16_224, lora, {budget}", 60, run)
    for model in LARGE:
        pixels, method = one_image.ROWS[model]
        for name, options in one_image.COLUMNS.items():
            run = partial(works.step, model, 1, "bf16", method, options, pixels=pixels)
            yield Row("one_image", f"{model} at {pixels}, {method}: {name}", 60, run)
    for name in DENSE:
        run = partial(works.detector_step, "vit_base_patch16_224", 1024, STEPS[name])
        yield Row("dense", f"vit_base_patch16_224 at 1024, lora: {name}", 90, run)
    for name in tasks.ROWS:
        run = partial(works.many_tasks, "vit_base_patch16_224", name, 5)
        yield Row("tasks", f"vit_base_patch16_224, {name}", 30, run)
    yield Row("cost_model", "products, copies, calls", 5, partial(works.cost_model, 8192))


def _kernels() -> Iterator[Row]:
    for policy in POLICIES:
        run = partial(works.gradients, "vit_micro_patch4_32", policy)
        yield Row("kernels", f"gradients of {policy}", 10, run)
    for dtype in kernels.DTYPES:
        for name in kernels.FUNCTIONS:
            run = partial(kernels.activation, name, dtype, 6304)
            yield Row("kernels", f"{name} and its codes, {dtype}", 5, run)
        run = partial(kernels.layer_norm, dtype, 6304)
        yield Row("kernels", f"layer norm, {dtype}", 5, run)
        for of_head in (32, 64, 80):
            for masked in (False, True):
                words = f"attention, heads of {of_head}, {'trained bias' * masked or 'plain'}"
                run = partial(kernels.attention, dtype, of_head, masked)
                yield Row("kernels", f"{words}, {dtype}", 3, run)
    for kind in ("nf4", "int4"):
        run = partial(kernels.weight, kind, "bf16", 4096)
        yield Row("kernels", f"a weight in {kind}", 5, run)
    for bits in (1, 2, 4, 8):
        yield Row("kernels", f"affine, {bits} bits", 2, partial(kernels.codec, bits, 2**20 + 37))


def files_with_gpu_tests() -> list[str]:
    """Find the test files that ask for a card, by their mark.

    Returns:
        Paths in the repository.
    """
    files = sorted((works.REPOSITORY / "tests").rglob("test_*.py"))
    marked = [file for file in files if "pytest.mark.gpu" in file.read_text()]
    return [file.relative_to(works.REPOSITORY).as_posix() for file in marked]


def _smoke() -> Iterator[Row]:
    tiny = "vit_micro_patch4_32"
    file = "tests/gpu/test_on_a_card.py"
    yield Row("tests", file, 1, partial(works.tests, file, some="cpu and learns"))
    yield Row("kernels", "affine, 4 bits", 1, partial(kernels.codec, 4, 1000))
    run = partial(kernels.activation, "gelu", "bf16", 2)
    yield Row("kernels", "gelu and its codes, bf16", 1, run)
    yield Row("kernels", "layer norm, fp32", 1, partial(kernels.layer_norm, "fp32", 3))
    yield Row("kernels", "a weight in nf4", 1, partial(kernels.weight, "nf4", "fp32", 64))
    run = partial(kernels.attention, "fp32", 8, False)
    yield Row("kernels", "attention, heads of 8, plain, fp32", 1, run)
    run = partial(works.gradients, tiny, "tight")
    yield Row("kernels", "gradients of tight", 1, run)
    for name in ("exact", "tight", "1 images at a time"):
        run = partial(works.step, tiny, 4, "no", "lora", STEPS[name])
        yield Row("steps", f"{tiny}, lora, batch 4, fp32/TF32: {name}", 1, run)
    run = partial(works.at_budget, tiny, "64MiB", 2)
    yield Row("budget", f"{tiny}, lora, 64MiB", 1, run)
    run = partial(works.step, tiny, 1, "no", "lora", {}, pixels=64)
    yield Row("one_image", f"{tiny} at 64, lora: exact", 1, run)
    run = partial(works.detector_step, tiny, 64, STEPS["tight"])
    yield Row("dense", f"{tiny} at 64, lora: tight", 1, run)
    words = "19 linear, batch 1"
    yield Row("tasks", f"{tiny}, {words}", 1, partial(works.many_tasks, tiny, words, 1))
    yield Row("cost_model", "products, copies, calls", 1, partial(works.cost_model, 64))


def _words(amp: str) -> str:
    return "fp32/TF32" if amp == "no" else amp

"""Laws that hold on any device, on the CPU and, where there is one, on a card."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from nets import wake
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lowtide import METHODS, StepConfig, apply, create, plan
from lowtide.codecs.exact import Exact
from lowtide.families import FAMILIES, image_shape
from lowtide.memory.frozen_dtype import CODECS
from lowtide.ops import CASES, TIGHT
from lowtide.ops.attention import ATTENTION
from lowtide.ops.saved import saved
from lowtide.planning.simulate import set_up_step
from lowtide.planning.step import autocast, make_optimizer, training_step
from lowtide.tuning.tuned import Tuned, set_frozen_dtype

CARD = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card"),
    ],
)
on_each = pytest.mark.parametrize("device", ["cpu", CARD])
FAMILIES_HERE = ("vit", "swin", "convnext", "resnet")


@pytest.fixture(autouse=True)
def _whole_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32, which a CPU has not."""
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def tuned(family: str, device: str, method: str = "full") -> Tuned:
    torch.manual_seed(0)
    return apply(wake(FAMILIES[family].tiny()), METHODS[method](), num_classes=5).to(device).train()


def outputs_and_gradient(model: Tuned, amp: Any, device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(3, *image_shape(model.backbone)).to(device)
    with autocast(torch.device(device), amp):
        y = model(x)
    y.float().logsumexp(-1).sum().backward()
    flat = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    return y.detach(), torch.cat(flat)


@on_each
@pytest.mark.parametrize("amp", ["no", "bf16"])
@pytest.mark.parametrize("family", FAMILIES_HERE)
@pytest.mark.parametrize("policy", ["tight", "codes", "blocks"])
def test_outputs_do_not_change_and_the_gradient_stays_close(
    policy: str, family: str, amp: str, device: str
) -> None:
    exact = outputs_and_gradient(tuned(family, device), amp, device)
    model = set_up_step(tuned(family, device), StepConfig(policy=policy))
    ours = outputs_and_gradient(model, amp, device)
    assert torch.equal(ours[0], exact[0])
    assert torch.cosine_similarity(ours[1], exact[1], dim=0) > 0.98


@on_each
@pytest.mark.parametrize("name", CASES)
def test_an_op_gives_the_result_and_the_gradients_of_torchs_own_call(
    name: str, device: str
) -> None:
    case, found = CASES[name], []
    options = {key: moved(value, device) for key, value in case.options.items()}
    # What holds tensors of its own, as targets, is asked where they are.
    there = "cpu" if any(isinstance(v, Tensor) for v in tree_leaves(options)) else device
    ours = partial(saved, case.op, Exact(), **options)
    for call, where in ((ours, device), (case.plain, there)):
        torch.manual_seed(0)
        drawn = [None if s is None else torch.randn(s).to(where) for s in case.shapes]
        wanted = [t.requires_grad_() for t in drawn if t is not None]
        torch.manual_seed(3)  # the same noise
        y = call(*drawn)
        dy = torch.linspace(-1, 1, y.numel(), device=where).view(y.shape)
        found.append([t.cpu() for t in (y.detach(), *torch.autograd.grad(y, wanted, dy))])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def moved(value: Any, device: str) -> Any:
    """Tensors of an option, copied to the device."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float32 if value.is_floating_point() else None, copy=True)
    return tuple(moved(v, device) for v in value) if type(value) is tuple else value


@on_each
@pytest.mark.parametrize("dtype", CODECS)
def test_frozen_weights_in_few_bits_give_what_the_widened_ones_give(
    dtype: Any, device: str
) -> None:
    found = []
    for widened in (False, True):
        model = tuned("vit", device, "lora")
        set_frozen_dtype(model, dtype)
        if widened:
            set_frozen_dtype(model, "fp32")
        found.append(outputs_and_gradient(model, "no", device))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@on_each
@pytest.mark.parametrize("step", [{}, {"checkpointing": True}, {"frozen_dtype": "nf4"}], ids=str)
def test_a_step_of_tight_learns(step: dict[str, Any], device: str) -> None:
    wanted = StepConfig(policy="tight", **step)
    model = set_up_step(tuned("vit", device, "lora"), wanted)
    optimizer = make_optimizer(model, lr=1e-2)
    x = torch.randn(4, *image_shape(model.backbone)).to(device)
    batch = [(x, torch.arange(4, device=device) % 5)]
    losses = [float(training_step(model, optimizer, batch, amp="bf16")) for _ in range(8)]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("device", [CARD])
def test_the_most_that_a_step_allocates_is_planned(device: str) -> None:
    method, wanted = METHODS["lora"](), StepConfig(policy="tight", batch_size=16)
    planned = plan("vit_small_patch16_224", method, step=wanted, num_classes=5).peak_bytes
    model = apply(create("vit_small_patch16_224", pretrained=False), method, num_classes=5)
    set_up_step(model.to(device), wanted).train()
    optimizer = make_optimizer(model)
    x = torch.randn(16, 3, 224, 224, device=device)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        training_step(model, optimizer, [(x, torch.zeros(16, device=device).long())])
    assert abs(torch.cuda.max_memory_allocated() / planned - 1) < 0.15


@pytest.mark.parametrize("device", [CARD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_v", [64, 96])
def test_no_attention_matrix_is_there_in_backward(
    of_v: int, dtype: torch.dtype, device: str
) -> None:
    given = {"dtype": dtype, "device": device, "requires_grad": True}
    q, k, v = (torch.randn(1, 4, 4096, d, **given) for d in (64, 64, of_v))
    y = saved(ATTENTION, TIGHT["attention"], q, k, v, None, scale=0.1, causal=False)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(y, (q, k, v), torch.randn_like(y))
    assert torch.cuda.max_memory_allocated() - before < 4 * 4096 * 4096 * dtype.itemsize / 2

"""The policy `codes`: what exact computes, no more, and fewer bytes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from dispatched import Called
from nets import wake
from torch import Tensor

from lowtide import METHODS, StepConfig, apply, compress, plan
from lowtide.families import FAMILIES, image_shape
from lowtide.tuning.tuned import Tuned

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::native_layer_norm")


def tuned(policy: str, family: str = "vit") -> Tuned:
    torch.manual_seed(0)
    model = apply(wake(FAMILIES[family].tiny()), METHODS["lora"](), num_classes=5).train()
    return compress(model, policy)


def step(model: Tuned) -> tuple[Tensor, Tensor, Counter[str]]:
    """Outputs, the gradient, and what the backward has called."""
    torch.manual_seed(1)
    y = model(torch.randn(3, *image_shape(model.backbone)))
    with Called() as called:
        y.logsumexp(-1).sum().backward()
    flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return y.detach(), torch.cat(flat), called.names


@pytest.mark.parametrize("family", ["vit", "swin", "convnext"])
def test_outputs_are_exacts_and_the_gradient_is_close(family: str) -> None:
    (y, exact, _), (ours, near, _) = step(tuned("exact", family)), step(tuned("codes", family))
    assert torch.equal(y, ours)
    assert 0.99 < torch.cosine_similarity(exact, near, dim=0) < 1


def test_no_product_outside_of_attention_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowtide.ops.attention.FUSED", {"cpu"})  # torch's own, as exact's is
    counts = {policy: step(tuned(policy))[2] for policy in ("exact", "codes", "tight")}
    products = {policy: sum(n[p] for p in PRODUCTS) for policy, n in counts.items()}
    assert products["exact"] == products["codes"] < products["tight"]


def test_it_keeps_a_little_more_than_tight() -> None:
    saved = {}
    for policy in ("exact", "codes", "tight"):
        wanted = StepConfig(policy=policy, batch_size=2)
        planned = plan("vit_small_patch16_224", METHODS["bias"](), step=wanted, num_classes=5)
        saved[policy] = planned.parts["saved"]
    # Queries, keys and values of 2 images and 12 blocks, 4.5 bits a number; norms in 4, not in 6.
    qkv = 2 * 12 * 197 * 3 * 384 * 4.5 / 8
    assert 0.6 * qkv < saved["codes"] - saved["tight"] < qkv
    assert 5 * saved["codes"] < saved["exact"]

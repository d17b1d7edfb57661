"""The optimiser: what decays and what does not."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from lowtide import METHODS
from lowtide.step import make_optimizer
from lowtide.tune import apply


def decays(model: nn.Module) -> dict[str, bool]:
    """Whether an update without a gradient shrinks each trained parameter."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(model, "adamw", lr=0.1, weight_decay=0.5)
    with torch.no_grad():
        for p in trained.values():
            p.fill_(2.0)
            p.grad = torch.zeros_like(p)
    optimizer.step()
    values = {n: p.unique().item() for n, p in trained.items()}
    assert all(v == 2.0 or v == pytest.approx(2.0 * (1 - 0.1 * 0.5)) for v in values.values())
    return {n: v != 2.0 for n, v in values.items()}


@pytest.mark.parametrize("shape", [(), (6,), (6, 1), (1, 6), (6, 1, 1), (1, 1, 6), (1, 6, 1, 1)])
def test_a_vector_never_decays_in_any_layout(shape):
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(shape))
    model.matrix = nn.Parameter(torch.ones(6, 2))
    assert decays(model) == {"scale": False, "matrix": True}


def test_norms_and_biases_do_not_decay_and_kernels_do():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2))
    assert [n for n, shrinks in decays(model).items() if shrinks] == ["0.weight", "3.weight"]


def test_a_factor_of_rank_one_decays_like_one_of_any_rank():
    """The weight of a map stays a matrix where it has one row."""
    assert decays(nn.Linear(6, 1)) == {"weight": True, "bias": False}
    tuned = [
        apply(timm.create_model("test_vit", num_classes=4), METHODS["lora"](rank=r)) for r in (1, 2)
    ]
    assert decays(tuned[0]) == decays(tuned[1])
    assert any(shrinks for n, shrinks in decays(tuned[0]).items() if "blocks" in n)


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_resnet"])
def test_of_ssf_only_the_classifier_decays(backbone):
    """Its scales over feature maps are (C, 1, 1), and all start near one."""
    tuned = apply(timm.create_model(backbone, num_classes=4), METHODS["ssf"]())
    shrinking = [n for n, shrinks in decays(tuned).items() if shrinks]
    assert [tuned.get_parameter(n).shape[0] for n in shrinking] == [4]


def test_without_decay_nothing_shrinks():
    optimizer = make_optimizer(nn.Linear(3, 2), weight_decay=0.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]

"""Stochastic depth of the backbone: on in training, inside frozen blocks, and off at zero."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath

from lowtide import METHODS
from lowtide.tuning.backbone import create
from lowtide.tuning.tuned import apply

SMALL = {
    "vit": "vit_micro_patch4_32",
    "swin": "swin_tiny_patch4_window7_224",
    "convnext": "convnext_atto",
}


@pytest.fixture(scope="module", params=SMALL.values(), ids=SMALL)
def tuned(request):
    """Only the classifier trains: every block is frozen."""
    torch.manual_seed(0)
    backbone = create(request.param, pretrained=False, drop_path=0.5)
    for p in backbone.parameters():  # awake: a layer scale of 1e-6 would hide the residual branch
        p.data.normal_(std=0.3)
    return apply(backbone, METHODS["linear"](), num_classes=3)


def images(tuned, count=4):
    return torch.randn(1, *tuned.backbone.pretrained_cfg["input_size"]).expand(count, -1, -1, -1)


@torch.no_grad()
def test_frozen_blocks_are_dropped_image_by_image_in_training_only(tuned):
    x = images(tuned)
    same = tuned.eval()(x)
    assert torch.allclose(same, same[:1].expand_as(same), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(tuned.train()(x)[0], tuned(x)[1])
    assert not any(p.requires_grad for n, p in tuned.named_parameters() if "block" in n)


@torch.no_grad()
def test_a_dropped_branch_is_zero_and_a_kept_one_is_scaled(tuned):
    """`x + branch / (1 - rate)` or `x`, with rates that rise to the one asked for."""
    drops = [m for m in tuned.train().modules() if isinstance(m, DropPath)]
    rates = [m.drop_prob for m in drops]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.5)
    seen = []
    hook = drops[-1].register_forward_hook(lambda module, args, y: seen.append((args[0], y)))
    tuned(images(tuned, 16))
    hook.remove()
    branch, out = seen[0]
    kept = out.flatten(1).abs().sum(1) > 0
    assert 0 < kept.sum() < len(kept)
    torch.testing.assert_close(out[kept], 2 * branch[kept])


@pytest.mark.parametrize("name", SMALL.values(), ids=SMALL)
def test_zero_means_none_whatever_timm_defaults_to(name):
    model = create(name, pretrained=False)
    assert not any(m.drop_prob for m in model.modules() if isinstance(m, DropPath))

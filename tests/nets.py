"""Small backbones that cannot pass a law by being asleep."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowtide.families import FAMILIES, GENERIC, Family, image_shape
from lowtide.methods import METHODS

TABLES: dict[str, Family] = {**FAMILIES, GENERIC.name: GENERIC}
"""Every table, the generic one included."""
FEW = 4
"""Classes of the classifiers the tests train."""


def wake(model: nn.Module) -> nn.Module:
    """Draw every parameter and statistic anew, so that each takes part in the output.

    Classifiers that start at zero, layer scales of 1e-6, and the norms that close a residual branch
    at zero would let any law pass.
    """
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, max(p[0].numel() ** -0.5, 0.02))
            else:
                p.add_(torch.randn_like(p), alpha=0.3)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return model


def from_timm(name: str, **options: Any) -> nn.Module:
    """A random backbone of timm's, where its version has it."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    return timm.create_model(name, **options)


@cache
def _example(family: str) -> nn.Module:
    torch.manual_seed(0)
    model = wake(TABLES[family].tiny().double())
    if not hasattr(getattr(model, "patch_embed", None), "img_size"):
        model.pretrained_cfg = {"input_size": (3, 64, 64)}
    return settle(model, images(model, batch=8))


def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """Where an image is lost in deep BatchNorms, let their statistics be those of images."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        if not norms or model.eval()(x).std(0).mean() > 0.1:
            return model.train()
        for m in norms:
            m.momentum = None
        model.train()(x)
    for m in norms:
        m.momentum = 0.1
    return model


def tiny(family: str) -> nn.Module:
    """A fresh, awake member of a family in float64; the same weights every time."""
    return copy.deepcopy(_example(family))


def images(model: nn.Module, batch: int = 3) -> Tensor:
    """Smooth random images: white noise would be pooled away."""
    channels, *size = image_shape(model)
    like = next(model.parameters())
    coarse = 2 * torch.randn(batch, channels, 6, 6, dtype=like.dtype)
    return F.interpolate(coarse, size, mode="bilinear")


def stir(tuned: nn.Module) -> None:
    """Move everything that trains, as a long training would."""
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)


def near(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def cotangent(y: Tensor, seed: int) -> Tensor:
    """Draw what comes back to an output; never ones, which would hide wrong weights."""
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)


def backward(model: nn.Module, x: Tensor, seed: int = 1) -> Tensor:
    """Run forward and backward; give the output back."""
    torch.manual_seed(seed)  # stochastic depth
    y = model(x)
    y.backward(cotangent(y, seed))
    return y.detach()


COMBINATIONS = [(m, f) for m in sorted(METHODS) for f in sorted(TABLES)]

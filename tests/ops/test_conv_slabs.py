"""A large input of a convolution is unpacked some channels at a time, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lowtide.codecs.affine import Affine
from lowtide.memory.compress import compress
from lowtide.memory.policy import Policy
from lowtide.ops import conv
from lowtide.planning.meter import Meter

CONVOLUTIONS: dict[str, Callable[[], torch.nn.Module]] = {
    "direct": lambda: torch.nn.Conv2d(6, 5, 3, stride=2, padding=1),
    "transposed": lambda: torch.nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1),
    "frozen": lambda: torch.nn.Conv2d(6, 5, 3).requires_grad_(False),
    "grouped": lambda: torch.nn.Conv2d(6, 6, 3, groups=2),
}


def gradients(layer: torch.nn.Module, x: Tensor, cotangent: int = 0) -> list[Tensor]:
    """Of the input and of what trains, from a fixed cotangent."""
    y = layer(x)
    torch.manual_seed(1)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return list(torch.autograd.grad(y, wanted, torch.randn_like(y)))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("slab", [1, 64, 3 * 64, 10**6])
def test_gradients_are_those_of_the_unpacked_input(
    kind: str, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 8 bits x' is another input; at it the gradients are torch's own, whatever the slabs."""
    torch.manual_seed(0)
    codec = Affine(8, 16)
    layer = torch.nn.Sequential(CONVOLUTIONS[kind]()).double()
    x = torch.randn(3, 6, 8, 8, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(conv, "SLAB", 10**9)
    compress(layer, Policy({"conv": codec}))
    whole = gradients(layer, x)
    monkeypatch.setattr(conv, "SLAB", slab)
    for mine, theirs in zip(gradients(layer, x), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_only_a_slab_exists_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = []
    for slab in (10**9, 2 * 64 * 64):
        monkeypatch.setattr(conv, "SLAB", slab)
        layer = torch.nn.Sequential(torch.nn.Conv2d(16, 2, 1))
        compress(layer, Policy({"conv": Affine(8, 64)}))
        y = layer(torch.randn(1, 16, 64, 64))
        with Meter(layer) as meter:
            y.sum().backward()
        peaks.append(meter.peak.peak_bytes)
    assert peaks[0] - peaks[1] >= 4 * 13 * 64 * 64

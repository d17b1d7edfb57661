"""Readers of one large tensor share a sum, and whoever asks the tensor itself sees all of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from lowtide.codecs.exact import Exact
from lowtide.memory.compress import compress
from lowtide.memory.policy import Policy
from lowtide.ops import fan
from lowtide.ops import roi_align as pooling
from lowtide.planning.meter import Meter

EXACT = Policy({name: Exact() for name in ("conv", "roi_align", "max_pool")})
ROIS = torch.tensor([[0.0, 1, 1, 6, 5], [1, 0, 2, 7, 7]])


class Readers(nn.Module):
    """A map that two convolutions, two pools and something of torch's read."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.one, self.two = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.made(x) * 1
        self.kept = [x]
        pooled = [roi_align(x, ROIS.to(x.dtype), size, 1.0, 2) for size in (2, 3)]
        given = [self.one(x), self.two(x), F.max_pool2d(x, 2), x.sin(), *pooled]
        return torch.cat([t.flatten() for t in given])


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan, "LARGE", 1)
    monkeypatch.setattr(pooling, "PART", 64)


def readers(policy: Policy | None) -> tuple[Readers, Tensor]:
    torch.manual_seed(0)
    model = Readers().double()
    if policy is not None:
        compress(model, policy)
    return model, torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)


def gradients(policy: Policy | None) -> list[Tensor]:
    """Of the input, the map and the weights; twice of one graph, once of the map alone."""
    model, x = readers(policy)
    seen: list[Tensor] = []
    y = model(x)
    (kept,) = model.kept
    kept.register_hook(lambda g: seen.append(g.clone()))
    torch.manual_seed(1)
    first, second = torch.randn_like(y), torch.randn_like(y)
    alone = torch.autograd.grad(y, kept, first, retain_graph=True)
    of_one = torch.autograd.grad(y, model.one.weight, first, retain_graph=True)
    wanted = [x, kept, *model.parameters()]
    once = torch.autograd.grad(y, wanted, first, retain_graph=True)
    return [*alone, *of_one, *once, *torch.autograd.grad(y, wanted, second), *seen]


def test_gradients_are_torchs_whoever_asks() -> None:
    for mine, theirs in zip(gradients(EXACT), gradients(None), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_what_torch_adds_up_is_part_of_the_sum() -> None:
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    alias, shared = fan.gathered(x * 1)
    alias.register_hook(lambda _: shared.add(torch.ones(2, 3)))
    (dx,) = torch.autograd.grad(alias.sin().sum(), x)
    torch.testing.assert_close(dx, x.detach().cos() + 1, rtol=1e-9, atol=1e-9)


def test_a_tensor_written_to_in_between_has_two_sums() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            y = roi_align(x, ROIS.to(x.dtype), 2, 1.0, 2)
            x.mul_(2)
            return y.sum() + self.two(x).sum()

    results = []
    for policy in (None, EXACT):
        torch.manual_seed(0)
        model = Written().double()
        if policy is not None:
            compress(model, policy)
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        results.append(torch.autograd.grad(model(x), x)[0])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_gradients_of_regions_are_added_to_one_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two pools torch makes two maps, and a third of their sum; here is one, and the result."""
    monkeypatch.setattr(pooling, "PART", 32 * 32)

    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return sum(roi_align(x, ROIS, n, 1.0, 2).sum() for n in (2, 3))  # type: ignore[return-value]

    peaks = []
    for policy in (Policy(), EXACT):
        model = compress(Pools(), policy)
        x = torch.randn(2, 16, 32, 32, requires_grad=True)
        y = model(x * 1)
        with Meter(model) as meter:
            torch.autograd.grad(y, x)
        peaks.append(meter.peak.peak_bytes)
    assert peaks[0] - peaks[1] >= 0.9 * 4 * 2 * 16 * 32 * 32

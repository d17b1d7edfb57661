"""The meter: bytes known by hand, parts that add up, and fake tensors that equal real ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from lowtide.planning.meter import PARTS, Footprint, Meter, footprint
from lowtide.versions import on_meta

TINY: dict[str, dict[str, object]] = {
    "test_vit": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 4,
        "depths": (1, 1, 2, 1),
        "embed_dim": 12,
        "num_heads": (3, 3, 3, 3),
    },
    "test_convnext": {},
    "test_resnet": {},
}
TRAINED: dict[str, Callable[[str], bool]] = {
    "full": lambda name: True,
    "bias": lambda name: name.endswith("bias"),
}


def run(model: nn.Module, trained: Callable[[str], bool], **adamw: bool) -> Footprint:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, **adamw)
    images, labels = torch.zeros(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return footprint(step, model, optimizer)


def make(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=3, **TINY[name])


def planned(name: str, trained: str, **adamw: bool) -> Footprint:
    with on_meta():
        model = make(name)
    with FakeTensorMode():
        model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype))
        return run(model, TRAINED[trained], **adamw)


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("name", TINY)
def test_fake_equals_real_to_the_byte(name: str, trained: str) -> None:
    real = run(make(name), TRAINED[trained])
    assert planned(name, trained) == real
    assert sum(real.parts.values()) == real.peak_bytes
    assert set(real.parts) == set(PARTS)


@pytest.mark.parametrize("adamw", [{"foreach": True}, {"fused": True}])
def test_every_adamw_is_followed(adamw: dict[str, bool]) -> None:
    real = run(make("test_vit"), TRAINED["full"], **adamw)
    assert planned("test_vit", "full", **adamw) == real


def test_parts_of_a_linear_chain_by_hand() -> None:
    """y = W2 tanh(W1 x): tanh keeps its output, W1 and W2 keep their inputs; all known by hand."""
    model = nn.Sequential(nn.Linear(8, 64, bias=False), nn.Tanh(), nn.Linear(64, 4, bias=False))
    x, at_forward_end = torch.zeros(32, 8), {}

    def step() -> None:
        loss = model(x).square().sum()
        at_forward_end.update(meter._ledger.parts)
        loss.backward()
        model.zero_grad()

    with Meter(model) as meter:
        step()
    assert at_forward_end["weights"] == 4 * (8 * 64 + 64 * 4)
    # x, tanh's output (kept twice, counted once) and y, which square keeps.
    assert at_forward_end["saved"] == 4 * (32 * 8 + 32 * 64 + 32 * 4)
    assert at_forward_end["gradients"] == 0
    # y itself is the saved one; only the loss is neither saved nor a weight.
    assert at_forward_end["temporaries"] == 4


def test_gradients_and_state_have_their_own_parts() -> None:
    model = nn.Linear(100, 50)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        model(torch.zeros(1, 100)).sum().backward()
        optimizer.step()

    found = footprint(step, model, optimizer).parts
    numbers = 100 * 50 + 50
    assert found["weights"] == found["gradients"] == 4 * numbers
    assert found["optimiser"] == 2 * 4 * numbers + 2 * 4  # two moments, and a step count each


def test_a_weight_stays_a_weight() -> None:
    """Whoever else holds it: an optimiser that keeps the starting point, autograd, a gradient."""
    model = nn.Linear(100, 50, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.weight]["start"] = model.weight
    x = torch.zeros(1, 100, requires_grad=True)

    def step() -> None:
        model(x).square().sum().backward()
        optimizer.step()

    found = footprint(step, model, optimizer).parts
    assert found["weights"] == 4 * 100 * 50
    assert found["optimiser"] == 0


def test_storages_die_with_their_last_view() -> None:
    with Meter(nn.Identity()) as meter:
        big = torch.zeros(1000)
        view = big[10:20].view(2, 5)
        del big
        torch.zeros(1)
        assert meter._ledger.parts["temporaries"] == 4000
        del view
        torch.zeros(1)
        assert meter._ledger.parts["temporaries"] == 0
    assert meter.peak.peak_bytes == 4004


def test_checkpointing_saves_less() -> None:
    class Twice(nn.Module):
        def __init__(self, light: bool) -> None:
            super().__init__()
            self.light = light
            self.body = nn.Sequential(nn.Linear(16, 256), nn.Tanh(), nn.Linear(256, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = checkpoint(self.body, x, use_reentrant=False) if self.light else self.body(x)
            return x

    def peak(light: bool) -> int:
        model = Twice(light)

        def step() -> None:
            model(torch.zeros(64, 16)).sum().backward()
            model.zero_grad()

        return footprint(step, model).peak_bytes

    assert peak(True) < 0.7 * peak(False)


def test_hooks_are_gone_after_an_error() -> None:
    model = nn.Linear(2, 2)

    def step() -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        footprint(step, model)
    assert not model.weight._post_accumulate_grad_hooks
    model(torch.zeros(1, 2)).sum().backward()

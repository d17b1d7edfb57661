"""Backbones without a table are recomputed part by part; what cannot run twice stays as it is."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from nets import FEW, backward, images, near, wake
from torch import Tensor, nn
from torchvision import models

from lowtide.core.site import Role
from lowtide.errors import Unsupported
from lowtide.families import recomputable
from lowtide.methods.bias import Bias
from lowtide.methods.full import Full
from lowtide.methods.lora import LoRA
from lowtide.tuning.applying import apply
from lowtide.tuning.tuned import Tuned, merge
from lowtide.versions import on_meta

C = 16


class Block(nn.Module):
    """Remembers how often it ran; spoils its input or a buffer of its own on demand."""

    def __init__(self, spoils: str = "") -> None:
        super().__init__()
        self.map, self.norm, self.out = (
            nn.Linear(C, 4 * C),
            nn.LayerNorm(4 * C),
            nn.Linear(4 * C, C),
        )
        self.register_buffer("seen", torch.zeros(()))
        self.spoils, self.runs = spoils, 0

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        self.runs += 1
        if self.spoils == "input":
            x.mul_(1.5)
        if self.spoils == "buffer":
            self.seen += 1
        return x + scale * self.out(self.norm(self.map(x)).tanh())


class Net(nn.Module):
    """Blocks held by no container, called by keyword, one of them twice."""

    def __init__(self, **spoils: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 4, 4)
        for i in range(4):
            self.add_module(f"b{i}", Block(spoils.get(f"b{i}", "")))
        self.fc = nn.Linear(C, FEW)
        self.pretrained_cfg = {"input_size": (3, 16, 16)}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).mT
        for i in (0, 1, 1, 2, 3):
            x = getattr(self, f"b{i}")(x, scale=0.5)
        return self.fc(x.mean(1))


def grown(tuned: Tuned) -> int:
    """Bytes that autograd keeps."""
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.nbytes) or t, lambda t: t
    ):
        tuned(images(tuned.backbone))
    return sum(kept)


def same_gradients(tuned: Tuned) -> None:
    x, twin = images(tuned.backbone), copy.deepcopy(tuned)
    twin.checkpointing = True
    near(backward(twin, x), backward(tuned, x))
    for (n, p), q in zip(tuned.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), n
        if p.grad is not None:
            near(q.grad, p.grad)
    for b, again in zip(tuned.buffers(), twin.buffers(), strict=True):
        assert torch.equal(b, again)


def test_repeated_blocks_are_found_wherever_they_stand() -> None:
    assert recomputable(Net()) == ("b0", "b1", "b2", "b3")


@pytest.mark.parametrize("spoils", ["input", "buffer"])
def test_what_cannot_run_twice_is_left_alone(spoils: str) -> None:
    model = Net(b2=spoils)
    assert recomputable(model) == ("b0", "b1", "b3")
    tuned = apply(wake(model.double()), Full())
    if spoils == "buffer":  # torch refuses a gradient through what was changed in place
        same_gradients(tuned)


@pytest.mark.parametrize("method", [Full(), Bias(), LoRA(rank=2)], ids=lambda m: type(m).__name__)
def test_parts_run_again_in_backward_and_give_the_same(method) -> None:
    tuned = apply(wake(Net().double()), method)
    same_gradients(tuned)
    before = grown(tuned)
    tuned.checkpointing = True
    assert grown(tuned) < 0.3 * before
    block = tuned.backbone.b3
    block.runs = 0
    backward(tuned, images(tuned.backbone))
    assert block.runs == 2
    tuned.checkpointing = False
    assert grown(tuned) == before and "forward" not in block.__dict__


def test_a_merged_backbone_is_plain() -> None:
    for method in (LoRA(rank=2, roles=(Role.LINEAR,)), Bias()):
        tuned = apply(wake(Net().double()), method)
        tuned.checkpointing = True
        plain, left = merge(tuned)
        assert not left and not any("forward" in m.__dict__ for m in plain.modules())


@pytest.mark.parametrize("name", ["regnety_002", "crossvit_9_240", "densenet121", "mixnet_s"])
def test_real_backbones_keep_less(name: str) -> None:
    with on_meta():
        model = timm.create_model(name, num_classes=FEW)
    parts = recomputable(model)
    assert len(parts) > 3
    for a, b in zip(parts, parts[1:], strict=False):
        assert not b.startswith(f"{a}.")


def test_recomputed_statistics_move_once() -> None:
    same_gradients(apply(wake(models.resnet18(num_classes=FEW).double()), Full()).train())


def test_a_backbone_of_single_layers_is_refused_in_one_line() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 900, 4))
    model[0].stride = (1, 1)
    model.pretrained_cfg = {"input_size": (3, 32, 32)}
    tuned = apply(model, Bias())
    with pytest.raises(Unsupported, match="Sequential has no part") as refusal:
        tuned.checkpointing = True
    assert "\n" not in str(refusal.value) and not tuned.checkpointing

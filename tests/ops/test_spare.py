"""Codes are kept only in the place of more bytes: what lives on in full needs none."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowtide.memory.compress import compress
from lowtide.planning.meter import Meter


class Rotary(nn.Module):
    """A pre-norm block: RMS norms written out, rotary attention, a gated MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scales = nn.Parameter(torch.rand(2, width) + 0.5)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.gate, self.down = (
            nn.Linear(a * width, b * width) for a, b in ((1, 2), (1, 2), (2, 1))
        )

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        def norm(x: Tensor, scale: Tensor) -> Tensor:
            return scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

        def turned(x: Tensor) -> Tensor:
            a, b = x.chunk(2, -1)
            return x * turn[0] + torch.cat((-b, a), -1) * turn[1]

        y = self.qkv(norm(x, self.scales[0])).unflatten(-1, (3, self.heads, -1))
        q, k, v = (t.transpose(1, 2) for t in y.unbind(2))
        y = F.scaled_dot_product_attention(turned(q), turned(k), v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = norm(x, self.scales[1])
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Tower(nn.Module):
    """Patches, a norm, blocks; each block under checkpointing if asked for."""

    def __init__(self, checkpoints: bool, depth: int = 3, width: int = 32) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.patch = nn.Conv2d(3, width, 4, 4, bias=False)
        self.scale = nn.Parameter(torch.rand(width))
        self.blocks = nn.ModuleList(Rotary(width, 2) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        angle = torch.arange(x.shape[1])[:, None] * torch.rand(self.scale.numel() // 2)
        turn = angle.cos(), angle.sin()
        x = self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        for block in self.blocks:
            if self.checkpoints:
                x = checkpoint(block, x, turn, use_reentrant=False)
            else:
                x = block(x, turn)
        return x


class Tapped(nn.Module):
    """Blocks under checkpointing, which keeps in full what the taps beside them read."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(3))
        self.taps = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, tapped = x * 2.0, torch.zeros(())
        for block, tap in zip(self.blocks, self.taps, strict=True):
            tapped = tapped + tap(x)
            x = checkpoint(block, x.requires_grad_(), use_reentrant=False)
        return x + tapped


class Heads(nn.Module):
    """Attention that is written out; maps between heads read the softmax, as in CaiT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.mix = nn.Linear(32, 96), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        p = (q @ k.mT).softmax(-1)
        return self.mix(p.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v


class Residual(nn.Module):
    """Convolutions with ReLUs, in place or not, whose results the next one keeps."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace))
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace), nn.Conv2d(8, 8, 1)
        )
        self.end = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.end(F.relu(x + self.body(x)))


Net = tuple[Callable[[], nn.Module], tuple[int, ...]]
NETS: dict[str, Net] = {
    "convolutions": (lambda: Residual(False), (4, 3, 16, 16)),
    "in place": (lambda: Residual(True), (4, 3, 16, 16)),
    "tapped": (lambda: nn.Sequential(Tapped()), (2, 24, 32)),
    "heads": (Heads, (2, 24, 32)),
    "tower": (lambda: Tower(False), (2, 3, 16, 16)),
    "checkpoints": (lambda: Tower(True), (2, 3, 16, 16)),
    "levit": (lambda: timm.create_model("levit_128s", num_classes=4), (2, 3, 224, 224)),
    "vit": (lambda: timm.create_model("test_vit", num_classes=4, img_size=64), (2, 3, 64, 64)),
}


def alive(model: nn.Module, x: Tensor) -> int:
    """Bytes of the storages that live on after a forward, without the weights."""
    with Meter(model) as meter:
        y = model(x)
        gc.collect()
        parts = meter.now.parts
    del y
    return sum(parts.values()) - parts["weights"] - parts["gradients"]


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    y = model(x)
    found = torch.autograd.grad(y.square().sum(), list(model.parameters()), retain_graph=True)
    again = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    return y.detach(), torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("policy", ["s2a", "tight"])
@pytest.mark.parametrize("name", NETS)
def test_no_policy_keeps_more_than_exact(name: str, policy: str) -> None:
    make, shape = NETS[name]
    model, x = make(), torch.randn(shape)
    (y, gradient), before = run(model, x), alive(model, x)
    compress(model, policy)
    after = alive(model, x)
    model.zero_grad()
    for module in model.modules():  # the statistics have moved
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    y_kept, kept = run(model, x)
    assert after <= before
    if not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        assert torch.equal(y_kept, y)
        assert F.cosine_similarity(kept.double(), gradient.double(), dim=0) > 0.99


def test_where_a_result_lives_on_its_codes_go_and_the_gradient_is_exact() -> None:
    for inplace in (False, True):
        model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace), nn.Linear(8, 8)))
        x = torch.randn(2, 5, 8)
        y, gradient = run(model, x)
        before = alive(model, x)
        compress(model, "s2a")
        assert alive(model, x) == before
        (y_kept, kept) = run(model, x)
        assert torch.equal(y_kept, y) and torch.equal(kept, gradient)


def test_without_a_reader_the_codes_stay() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
    model[0][2].requires_grad_(False)
    x = torch.randn(2, 64, 8)
    before = alive(model, x)
    compress(model, "s2a")
    assert before - alive(model, x) == 4 * 2 * 64 * 8 - 2 * 64 * 8 // 8


def test_what_lives_on_may_not_be_written_to() -> None:
    class Leaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
            self.inner[1].register_forward_hook(lambda m, i, y: setattr(self, "seen", y))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * 2.0

    model, x = Leaks(), torch.randn(2, 5, 8)
    compress(model, "s2a")
    y = model(x)
    model.seen.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an in-place operation"):
        y.sum().backward()


class Masked(nn.Module):
    """Attention with a mask of its own, whose result is kept in full behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.register_buffer("mask", torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        return torch.erf(F.scaled_dot_product_attention(q, k, v, self.mask))


def test_a_mask_that_is_read_again_may_not_be_written_to() -> None:
    inner = Masked()
    model, x = nn.Sequential(inner, nn.Identity()), torch.randn(2, 5, 8)
    _, gradient = run(model, x)
    compress(model, "s2a")
    torch.testing.assert_close(run(model, x)[1], gradient)  # its codes are gone
    y = model(x)
    inner.mask.mul_(-2)
    with pytest.raises(RuntimeError, match="modified by an in-place operation"):
        y.sum().backward()

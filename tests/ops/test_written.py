"""Functions written out, what follows from what is kept, and calls the op cases do not make."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowtide.codecs.exact import Exact
from lowtide.memory.compress import compress
from lowtide.memory.policies import POLICIES
from lowtide.memory.policy import Policy
from lowtide.ops import NAMES

Function = Callable[[Tensor], Tensor]
ROOT = math.sqrt(2 / math.pi)
ACTIVATIONS: dict[str, Function] = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "quick_gelu_turned": lambda x: torch.sigmoid(x * 1.702) * x,
    "silu": lambda x: x * x.sigmoid(),
    "silu_quotient": lambda x: x / (1 + torch.exp(-x)),
    "mish": lambda x: x.mul(F.softplus(x).tanh()),
    "gelu": lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "gelu_sum": lambda x: 0.5 * x + 0.5 * x * torch.erf(x / math.sqrt(2.0)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0)))),
    "hardswish": lambda x: x * F.relu6(x + 3.0) / 6,
    "hardswish_in_place": lambda x: (x + 0.0).mul_(F.relu6(x + 3.0, inplace=True).div_(6.0)),
    "hardswish_clamp": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "hardswish_hardsigmoid": lambda x: x * F.hardsigmoid(x),
}
PLAIN: dict[str, Function] = {
    "relu6_in_place": lambda x: F.relu6(x + 0, inplace=True),
    "leaky_relu_in_place": lambda x: F.leaky_relu(x + 0, 0.2, inplace=True),
    "elu_in_place": lambda x: F.elu(x + 0, inplace=True),
    "sigmoid_in_place": lambda x: (x + 0).sigmoid_(),
    "clamp_min": lambda x: x.clamp_min(-0.3),
    "clamp_max": lambda x: torch.clamp_max(x, 0.3),
    "clamp_one": lambda x: x.clamp(max=0.3),
    "clip_in_place": lambda x: (x + 0).clip_(-0.5, 0.5),
    "threshold": lambda x: F.threshold(x, 0.2, -7.0),
    "mul_in_place": lambda x: (x + 1).mul_(x.roll(1, 0)),
    "div_in_place": lambda x: (x + 1).div_(2 + x.roll(1, 0).square()),
    "norm_by_torch": lambda x: torch.norm(x, 2, 1),
    "norm_of_all": lambda x: x.norm(),
    "other_norm": lambda x: torch.linalg.vector_norm(x, 1, dim=-1),
    "other_power": lambda x: (x.square() + 1) ** 1.5,
    "amax_of_all": lambda x: x.relu().amax(),
    "amax_of_equals": lambda x: x.relu().amax((0, 1)),
    "rms_norm": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "unit": lambda x: x / x.norm(dim=-1, keepdim=True),
    "star": lambda x: F.relu(x) ** 2,
    "twice": lambda x: x * x.roll(1, 0) * torch.sigmoid(x),
    "shifted": lambda x: (x + 1) * torch.sigmoid(x),
    "of_another": lambda x: x * torch.sigmoid(1.702 * x.roll(1, 0)),
}


class Calls(nn.Module):
    """A model that makes calls, with a child so that it is compressed as models are."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call, self.child = call, nn.Identity()

    def forward(self, *given: Tensor) -> Any:
        return self.call(*given)


class Storages(TorchDispatchMode):
    """The storages that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                self.made[storage._cdata] = weakref.ref(storage)
        return result

    def alive(self, *but: Tensor) -> int:
        gc.collect()
        known = {t.untyped_storage()._cdata for t in but}
        left = [s for key, ref in self.made.items() if key not in known and (s := ref())]
        return sum(s.nbytes() for s in left)


def both(call: Function, x: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
    """The gradient by torch and by a policy, of the same result."""
    y, z = call(x), compress(Calls(call), policy)(x)
    assert torch.equal(y, z)
    dy = torch.randn_like(y)
    return torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(z, x, dy)[0]


@pytest.mark.parametrize("name", [*ACTIVATIONS, *PLAIN])
def test_the_exact_codec_changes_nothing(name: str) -> None:
    x = torch.randn(4, 9, 16, dtype=torch.float64, requires_grad=True)
    theirs, ours = both({**ACTIVATIONS, **PLAIN}[name], x, Policy(dict.fromkeys(NAMES, Exact())))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*ACTIVATIONS, *PLAIN])
def test_the_tight_policy_comes_close(name: str) -> None:
    x = torch.randn(4, 9, 64, requires_grad=True)
    theirs, ours = both({**ACTIVATIONS, **PLAIN}[name], x, POLICIES["tight"]())
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.995


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_that_is_written_out_keeps_what_the_function_does(name: str) -> None:
    # Of a tensor of its own, for what is kept of one goes with it.
    model = compress(Calls(lambda x: ACTIVATIONS[name](x + 0)), "tight")
    x = torch.randn(4, 8, 64, requires_grad=True)
    with Storages() as storages:
        y = model(x)
    bits = 5.5 if name.startswith("hardswish") else 4
    assert storages.alive(x, y) == x.numel() * bits / 8


def test_who_asks_for_a_gradient_on_the_way_gets_it() -> None:
    seen: list[Tensor] = []

    def call(x: Tensor) -> Tensor:
        gate = torch.sigmoid(1.702 * x)
        gate.register_hook(lambda g: seen.append(g))
        return x * gate

    x = torch.randn(4, 8, 64, requires_grad=True)
    compress(Calls(call), "tight")(x).sum().backward()
    torch.testing.assert_close(seen[0], x.detach(), rtol=0, atol=0.02)


def test_a_gate_that_is_used_again_has_its_own_gradient() -> None:
    def call(x: Tensor) -> Tensor:
        gate = torch.sigmoid(1.702 * x)
        return x * gate + gate.roll(1, 0) * 3

    x = torch.randn(4, 8, 16, dtype=torch.float64, requires_grad=True)
    theirs, ours = both(call, x, Policy(dict.fromkeys(NAMES, Exact())))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_tensor_that_is_written_to_is_another_one() -> None:
    def call(x: Tensor) -> Tensor:
        x = x + 0
        gate = torch.sigmoid(1.702 * x)
        x += 1
        return x * gate

    x = torch.randn(4, 8, 16, dtype=torch.float64, requires_grad=True)
    theirs, ours = both(call, x, Policy(dict.fromkeys(NAMES, Exact())))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


class ResponseNorm(nn.Module):
    """ConvNeXt V2's, before a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(channels)) for _ in range(2))
        self.fc = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        ratio = size / (size.mean(-1, keepdim=True) + 1e-6)
        return self.fc(x + torch.addcmul(self.bias, self.weight, x * ratio))


def test_all_of_a_response_norm_follows_from_its_input() -> None:
    """Its norm, two products and the linear layer behind read codes of x, a byte per number."""
    model = ResponseNorm(64)
    x = torch.randn(2, 8, 8, 64, requires_grad=True)
    wanted = [x, *model.parameters()]
    y = model(x)
    dy = torch.randn_like(y)
    theirs = torch.autograd.grad(y, wanted, dy)
    compress(model, "tight")
    with Storages() as storages:
        z = model(x)
    assert torch.equal(y, z)
    # Beside a byte and a sixteenth for statistics: what is made per channel.
    assert storages.alive(x, z, *model.parameters()) <= 1.6 * x.numel()
    for ours, right in zip(torch.autograd.grad(z, wanted, dy), theirs, strict=True):
        assert F.cosine_similarity(ours.flatten(), right.flatten(), 0) > 0.999


def test_a_factor_that_is_written_to_later_is_held_as_it_was() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 8), nn.Linear(64, 8)
            self.register_buffer("scale", torch.rand(1) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).sum() + self.second(x * self.scale).sum()
            self.scale.mul_(3)
            return y

    model = Scaled()
    x, scale = torch.randn(2, 9, 64), model.scale.clone()
    compress(model, "tight")(x).backward()
    right = (x * scale).sum((0, 1)).expand(8, 64)
    torch.testing.assert_close(model.second.weight.grad, right, rtol=0, atol=0.1)


def test_a_gate_per_channel_is_left_to_torch() -> None:
    x = torch.randn(2, 8, 1, 1, requires_grad=True)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        compress(Calls(torch.sigmoid), "tight")(x)
    assert [t.dtype for t in kept] == [torch.float32]


def compared(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Bytes kept by torch and under `tight`; results are equal, gradients close."""
    bytes_kept, results = [], []
    wanted = [x, *model.parameters()]
    for policy in (Policy(), POLICIES["tight"]()):
        compress(model, policy)
        with Storages() as storages:
            y = model(x)
        bytes_kept.append(storages.alive(x, y, *wanted, *model.buffers()))
        torch.manual_seed(7)
        results.append((y.detach(), torch.autograd.grad(y, wanted, torch.randn_like(y))))
    (y, theirs), (z, ours) = results
    assert torch.equal(y, z)
    for a, b in zip(ours, theirs, strict=True):
        assert F.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.995
    return bytes_kept[0], bytes_kept[1]


class Wide(nn.Module):
    """A convolution whose standardised weight is larger than what goes through it."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize("kind", [StdConv2d, ScaledStdConv2d, ScaledStdConv2dSame])
def test_a_standardised_weight_follows_from_its_parameter(kind: type[nn.Module]) -> None:
    model = Wide(kind(32, 64, 3, padding=1))
    exact, tight = compared(model, torch.randn(2, 32, 4, 4, requires_grad=True))
    weight, x = model.conv.weight.numel(), 2 * 32 * 16
    assert exact >= 4 * weight
    # The codes of x, and a few numbers per channel of the weight.
    assert tight <= 1.0625 * x + 4 * 64 * 4


@pytest.mark.parametrize("inplace", [False, True])
def test_a_convolution_behind_a_norm_reads_the_codes_in_front_of_it(inplace: bool) -> None:
    channels = 32
    for norm, most in ((nn.BatchNorm2d(channels), 1.2), (nn.GroupNorm(4, channels), 0.7)):
        model = nn.Sequential(norm, nn.ReLU(inplace), nn.Conv2d(channels, 8, 3))
        x = torch.randn(4, channels, 16, 16, requires_grad=True)
        exact, tight = compared(model, x)
        assert exact >= 4 * x.numel()
        assert tight <= most * x.numel()


@pytest.mark.parametrize(("rows", "codes"), [(2048, True), (32, False)])
def test_regions_are_kept_in_codes_and_pooled_features_exactly(rows: int, codes: bool) -> None:
    model = nn.Sequential(nn.Linear(64, 16))
    x = torch.randn(rows, 64) + 0  # autograd holds it only for the weight
    dy = torch.randn(rows, 16)
    compress(model, "tight")
    with Storages() as storages:
        y = model(x)
    assert storages.alive(x, y, *model.parameters()) == (1.0625 * x.numel() if codes else 0)
    y.backward(dy)
    assert torch.equal(model[0].weight.grad, dy.mT @ x) is not codes
    torch.testing.assert_close(model[0].weight.grad, dy.mT @ x, rtol=0, atol=0.02 * rows**0.5)


POINTLESS: dict[str, Function] = {
    "average": lambda x: F.avg_pool2d(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "mean": lambda x: x.mean((2, 3)),
    "nll_loss": lambda x: F.nll_loss(x, torch.zeros(2, 8, 8, dtype=torch.long)),
}


@pytest.mark.parametrize("name", POINTLESS)
def test_nothing_is_kept_of_a_linear_function_of_its_input(name: str) -> None:
    model = compress(Calls(lambda x: POINTLESS[name](x.roll(1, 0))), POLICIES["tight"]())
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    with Storages() as storages:
        y = model(x)
    assert storages.alive(x, y) <= 2 * 8 * 8 * 8 + 8  # the labels


NORMS: dict[str, Function] = {
    "rms_norm": lambda x: F.rms_norm(x, (64,)),
    "group_norm": lambda x: F.group_norm(x, 3),
    "instance_norm": F.instance_norm,
    "instance_norm_moving": nn.InstanceNorm1d(9, track_running_stats=True),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_few_bits_have_torchs_gradient(name: str, dtype: torch.dtype) -> None:
    """Small numbers, so that what is added to the variance matters."""
    x = (torch.randn(4, 9, 64) * 0.02).to(dtype).requires_grad_()
    policy = Policy(dict.fromkeys(NAMES, Exact()))
    model = copy.deepcopy(NORMS[name])
    if isinstance(model, nn.Module):
        model.to(dtype)
    y = model(x)
    dy = torch.randn_like(y)
    theirs = torch.autograd.grad(y, x, dy)[0].float()
    z = compress(Calls(copy.deepcopy(model)), policy)(x)
    ours = torch.autograd.grad(z, x, dy)[0].float()
    assert torch.equal(y, z)
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 4 * torch.finfo(dtype).eps

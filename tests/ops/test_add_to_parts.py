"""Sums into parts of a feature map: in its place where nobody else reads it, and the same."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from nets import backward, images, stir, tiny
from torch import Tensor, nn

import lowtide
from lowtide.codecs.affine import Affine
from lowtide.codecs.exact import Exact
from lowtide.core.parts import add_one_by_one, add_to_parts
from lowtide.core.site import Role
from lowtide.memory.mode import Answers
from lowtide.memory.policy import Policy
from lowtide.methods.lora import LoRA
from lowtide.ops import CALLS
from lowtide.ops.region import region
from lowtide.ops.saved import Call

PLACES = [((0, 2), -1, 1.0, 3), ((1,), 1, 0.5, 3), ((2, 0), 1, -2.0, 3), ((0,), -1, 3.0, 1)]
"""Which parts, the channels' axis, the factor, how many parts there are."""


def given(parts: tuple[int, ...], axis: int, count: int) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    shape = (2, 4, 4 * count) if axis == -1 else (2, 4 * count, 3, 2)
    y = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    part = list(shape)
    part[axis] = 4
    return y, [torch.randn(part, dtype=torch.float64, requires_grad=True) for _ in parts]


def in_place(y: Tensor, *updates: Tensor, own: bool = True, **options: object) -> Tensor:
    z = CALLS[add_to_parts]({}, Call(add_to_parts, (y, *updates), {**options, "own": own}))
    return z if z is NotImplemented else z.clone()


@pytest.mark.parametrize("parts, axis, scale, count", PLACES)
def test_the_sum_and_its_gradients(parts, axis, scale, count) -> None:
    y, updates = given(parts, axis, count)
    options = {"parts": parts, "axis": axis, "scale": scale}
    expected = y.detach().clone()
    for p, u in zip(parts, updates, strict=True):
        expected.chunk(count, axis)[p].add_(u.detach(), alpha=scale)
    assert torch.equal(add_to_parts(y, *updates, **options), expected)
    assert torch.equal(in_place(y.clone(), *updates, **options), expected)
    assert torch.autograd.gradcheck(lambda y, *u: in_place(y.clone(), *u, **options), (y, *updates))


def test_it_takes_the_place_of_what_it_is_added_to() -> None:
    y, updates = given((0, 2), -1, 3)
    base, options = y.clone(), {"parts": (0, 2), "axis": -1, "scale": 1.0}
    z = CALLS[add_to_parts]({}, Call(add_to_parts, (base, *updates), {**options, "own": True}))
    assert z.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
    assert in_place(y.clone(), *updates, own=False, **options) is NotImplemented
    wider = [u.double() for u in updates]
    assert in_place(y.detach().float(), *wider, **options) is NotImplemented


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("parts, axis, scale, count", PLACES)
def test_one_by_one_it_is_the_same_sum(parts, axis, scale, count, grad) -> None:
    y, updates = given(parts, axis, count)
    options = {"parts": parts, "axis": axis, "scale": scale}
    there, most = [], 0

    def made():
        nonlocal most
        for update in updates:
            most = max(most, 1 + sum(u() is not None for u in there))
            there.append(weakref.ref(found := update.detach().clone()))
            yield found
            del found

    expected = add_to_parts(y, *updates, **options).detach()
    plain = y.clone()
    assert torch.equal(add_one_by_one(plain, made(), **options), expected)
    assert torch.equal(plain, y) and most == len(parts)
    there, most, own = [], 0, y.clone() if grad else y.detach().clone()
    with Answers(Policy({"linear": Exact()}), region()):
        z = add_one_by_one(own, made(), **options)
    assert torch.equal(z, expected) and z.requires_grad == grad
    assert z.untyped_storage().data_ptr() == own.untyped_storage().data_ptr()
    assert most == 1


def test_whoever_kept_the_map_for_backward_notices() -> None:
    y, updates = given((0, 2), -1, 3)
    kept = y.exp()  # its gradient reads its result
    in_place(kept, *updates, parts=(0, 2), axis=-1, scale=1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


class Read(nn.Module):
    """An attention whose queries are a sum into a map, whose keys and values are views of it."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.norm, self.base, self.shared = nn.LayerNorm(8), nn.Linear(8, 8), shared
        self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z = self.base(y)
        for part in (1, 0):
            given = {"parts": [part], "axis": -1, "scale": 2.0, "own": True}
            z = add_to_parts(z, self.up(self.down(y)), **given)
        view = z.unflatten(-1, (2, 4)).flatten(-2)
        q, k, v = {"q": (z, view, view), "k": (view, z, z), "all": (z, z, z)}[self.shared]
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("shared", ["q", "k", "all"])
def test_what_follows_is_added_once_for_all_its_readers(shared) -> None:
    torch.manual_seed(0)
    model, x = Read(shared).double(), torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *model.parameters()]
    plain = torch.autograd.grad(model(x), inputs, torch.ones_like(x).cumsum(1))
    codecs = {"layer_norm": Exact(), "linear": Exact(), "attention": Affine(1, 8)}
    with Answers(Policy(codecs), region()) as mode, mode.following_products():
        y = model(x)
    for _ in range(2):
        ours = torch.autograd.grad(y, inputs, torch.ones_like(x).cumsum(1), retain_graph=True)
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


MAPS = {"q": LoRA(rank=2, parts="q", alpha=3.0), "qkv": LoRA(rank=2, parts="qkv")}
MAPS["all"] = LoRA(rank=2, roles=(Role.QKV, Role.PROJ, Role.FC1, Role.FC2))


@pytest.mark.parametrize("method", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("family", ["vit", "swin", "sam"])
def test_a_compressed_model_computes_the_same(family, method) -> None:
    found = []
    for policy in ("exact", "tight"):
        model = tiny(family)
        torch.manual_seed(2)
        tuned = lowtide.apply(model, method).train()
        stir(tuned)
        lowtide.compress(tuned, policy)
        torch.manual_seed(3)
        x = images(tuned.backbone)
        found.append(backward(tuned, x))
    assert torch.equal(*found)


def test_a_hook_on_the_base_sees_the_base() -> None:
    tuned = lowtide.compress(lowtide.apply(tiny("vit"), LoRA(rank=2)), "tight").train()
    stir(tuned)
    qkv = tuned.model.blocks[0].attn.qkv.base
    seen: list[tuple[Tensor, Tensor]] = []
    qkv.register_forward_hook(lambda module, args, y: seen.append((args[0], y)))
    backward(tuned, images(tuned.backbone))
    with torch.no_grad():
        assert torch.equal(seen[0][1], torch.nn.functional.linear(seen[0][0], qkv.weight, qkv.bias))

"""Frozen weights in bfloat16: the formula, what is saved, and that files know nothing of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from nets import cotangent, images, near, stir, tiny
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lowtide import METHODS, InputError, Policy, apply, compress, load, merge, narrow
from lowtide.families import FAMILIES
from lowtide.memory.frozen_dtype import NARROW, narrow_weights, widen_weights

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 5, 6)),
    "rows": (lambda: nn.Linear(6, 4, bias=False), (3, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 7)),
}


def rounded(model: nn.Module) -> nn.Module:
    """The same model with every weight that narrow keeps rounded to bfloat16, in its own dtype."""
    model = copy.deepcopy(model)
    narrow_weights(model)
    widen_weights(model)
    return model


@contextmanager
def kept() -> Iterator[list[Tensor]]:
    found: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        found.append(t)
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        yield found


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", LAYERS)
def test_a_narrow_layer_computes_with_the_rounded_weight(name: str) -> None:
    build, shape = LAYERS[name]
    layer = build().double()
    layer.weight.requires_grad_(False)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = layer.weight.bfloat16().double()
    narrow_weights(layer)
    assert layer.weight.dtype == torch.bfloat16 and type(layer) in NARROW.values()
    with kept() as saved:
        y = layer(x)
    assert [t.dtype for t in saved] == [torch.bfloat16]
    dy = cotangent(y, 1)
    y.backward(dy)
    again = x.detach().requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().clone().requires_grad_()
    expected = (
        F.linear(again, weight, bias)
        if name != "conv"
        else F.conv2d(again, weight, bias, stride=2, padding=1, groups=2)
    )
    expected.backward(dy)
    near(y, expected)
    near(x.grad, again.grad)
    if bias is not None:
        near(layer.bias.grad, bias.grad)


@pytest.mark.parametrize("name", ["bias", "linear", "lora", "full"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_narrow_model_is_the_rounded_one(family: str, name: str) -> None:
    tuned = apply(tiny(family), METHODS[name]())
    stir(tuned)
    plain, x = rounded(tuned), images(tuned.backbone)
    trained = {n: p.dtype for n, p in tuned.named_parameters() if p.requires_grad}
    narrow(tuned)
    assert set(trained.values()) == {torch.float64}
    assert trained == {n: p.dtype for n, p in tuned.named_parameters() if p.requires_grad}
    for model in (plain, tuned):
        model.train()
        torch.manual_seed(0)
        y = model(x)
        y.backward(cotangent(y, 2))
    theirs = gradients(plain)
    assert theirs.keys() == gradients(tuned).keys()
    for key, value in gradients(tuned).items():
        near(value, theirs[key], 1e-8)


def test_autocast_keeps_no_second_copy_of_a_weight() -> None:
    tuned = narrow(apply(FAMILIES["vit"].tiny(), METHODS["bias"]()))
    weights = {p.untyped_storage().data_ptr() for p in tuned.parameters()}
    shapes = {p.shape for n, p in tuned.named_parameters() if p.dtype == torch.bfloat16}
    with kept() as saved, torch.autocast("cpu", torch.bfloat16):
        tuned(torch.randn(2, 3, 32, 32))
    copies = [t for t in saved if t.shape in shapes]
    assert copies and all(t.untyped_storage().data_ptr() in weights for t in copies)


@pytest.mark.parametrize("name", ["bias", "lora"])
def test_files_are_those_of_the_original_weights(name: str, tmp_path) -> None:
    model = tiny("vit").float()
    original = copy.deepcopy(model.state_dict())
    tuned = narrow(apply(copy.deepcopy(model), METHODS[name](), num_classes=5))
    stir(tuned)
    tuned.save_pretrained(tmp_path)
    state = tuned.adapter_state()
    assert all(v.dtype == torch.float32 for v in state.values())
    merged = load(copy.deepcopy(model), tmp_path).merge_and_unload()
    weights = merged.state_dict()
    for key, value in original.items():
        if key.startswith("head.") or (name == "bias" and key.endswith("bias")):
            continue
        if name == "bias" or "qkv" not in key:
            assert torch.equal(weights[key], value), key
    if name == "lora":
        graft = tuned.backbone.blocks[0].attn.qkv
        pairs = zip(graft.down, graft.up, strict=True)
        q, v = (graft.scale * up.weight @ down.weight for down, up in pairs)
        key = "blocks.0.attn.qkv.weight"
        near(weights[key], original[key] + torch.cat([q, torch.zeros_like(q), v]), 1e-6)


@pytest.mark.parametrize("name", ["bias", "lora", "ssf"])
def test_merging_in_place_gives_the_model_that_was_trained(name: str) -> None:
    tuned = narrow(apply(tiny("vit"), METHODS[name]())).eval()
    stir(tuned)
    x = images(tuned.backbone)
    before = tuned(x)
    plain, unfolded = merge(tuned)
    assert not unfolded
    assert not [m for m in plain.modules() if type(m) in NARROW.values()]
    assert {p.dtype for p in plain.parameters()} == {torch.float64}
    near(plain.eval()(x), before)


def test_a_failed_merge_leaves_the_weights_narrow() -> None:
    tuned = narrow(apply(tiny("vit"), METHODS["s2a"]()))
    assert merge(tuned)[1]
    assert tuned.backbone.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16


def test_adapters_are_added_before() -> None:
    tuned = apply(tiny("vit"), METHODS["lora"]())
    tuned.add_adapter("other", METHODS["linear"]())
    narrow(tuned)
    with pytest.raises(InputError, match="before narrow"):
        tuned.add_adapter("third", METHODS["bias"]())
    for name in ("other", "default"):
        tuned.set_adapter(name)
        tuned(images(tuned.backbone)).sum().backward()
    assert all(p.dtype == torch.float64 for p in tuned.parameters() if p.requires_grad)


def test_weights_another_adapter_would_train_stay() -> None:
    tuned = apply(tiny("vit"), METHODS["lora"]())
    tuned.add_adapter("other", METHODS["full"]())
    narrow(tuned).set_adapter("other")
    tuned(images(tuned.backbone)).sum().backward()
    assert {p.dtype for p in tuned.parameters()} == {torch.float64}


def test_compress_and_narrow_in_either_order() -> None:
    x, found = images(tiny("vit").float()), []
    for first, second in ((compress, narrow), (narrow, compress)):
        tuned = apply(tiny("vit").float(), METHODS["bias"]())
        for verb in (first, second):
            verb(tuned, Policy.tight()) if verb is compress else verb(tuned)
        tuned(x).backward(torch.ones(3, 10))
        found.append(gradients(tuned))
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])

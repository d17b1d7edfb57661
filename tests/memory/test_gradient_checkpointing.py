"""Blocks that keep their input in codes and run again in backward."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from kept import kept_bytes
from nets import COMBINATIONS, FEW, backward, cotangent, images, near, stir, tiny, wake
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models

from lowtide import (
    METHODS,
    POLICIES,
    InputError,
    Policy,
    StepConfig,
    compress,
    set_frozen_dtype,
)
from lowtide.codecs.affine import Affine
from lowtide.codecs.base import Residue
from lowtide.codecs.exact import Exact
from lowtide.errors import Unsupported
from lowtide.families import Family
from lowtide.memory import chunking, tokens
from lowtide.memory.gradient_checkpointing import recompute
from lowtide.methods.bias import Bias
from lowtide.methods.full import Full
from lowtide.methods.lora import LoRA
from lowtide.tuning.applying import apply
from lowtide.tuning.tuned import Tuned

LOSSLESS = Policy(block=Affine(8, group=1))
"""A group of one number is its own minimum."""
PIECES = Policy({"mul": Exact()}, chunk=1 << 20, block=Affine(8, group=1))
CODED = Policy(block=Affine(4, 16))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def twins(model: nn.Module, policy: Policy, *methods: object) -> tuple[Tuned, Tuned]:
    """A tuned model that keeps everything, and one that recomputes its blocks."""
    tuned = apply(model, *methods, num_classes=FEW).train()
    stir(tuned)
    twin = compress(copy.deepcopy(tuned), policy)
    twin.checkpointing = True
    return tuned, twin


def same(tuned: Tuned, twin: Tuned) -> None:
    x = images(tuned.backbone)
    assert torch.equal(backward(twin, x), backward(tuned, x))
    wanted, got = gradients(tuned), gradients(twin)
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        near(got[name], gradient)
    for (name, buffer), again in zip(tuned.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, again), name


@pytest.mark.parametrize(("name", "family"), COMBINATIONS, ids=str)
def test_codes_that_lose_nothing_give_the_exact_gradient(name: str, family: str) -> None:
    try:
        pair = twins(tiny(family), LOSSLESS, METHODS[name]())
    except Unsupported:
        return  # refused without checkpointing as well
    same(*pair)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PIECE", 64)
    monkeypatch.setattr(chunking, "ALIGNED", 8)
    monkeypatch.setattr(tokens, "ALIGNED", 8)
    monkeypatch.setattr(tokens, "INPUT", Affine(8, group=1))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("name", "family"), COMBINATIONS, ids=str)
def test_mlps_in_pieces_give_the_exact_gradient(name: str, family: str) -> None:
    try:
        pair = twins(tiny(family), PIECES, METHODS[name]())
    except Unsupported:
        return  # refused without checkpointing as well
    same(*pair)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("method", ["lora", "bias", "ssf", "rlrr", "s2a"])
@pytest.mark.parametrize("scales", [None, 0.1], ids=["plain", "layer_scale"])
def test_an_mlp_runs_no_more_often_than_its_block(method: str, scales: float | None) -> None:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2}
    model = wake(timm.create_model("vit_tiny_patch16_224", **small, init_values=scales))
    tuned = compress(apply(model, METHODS[method](), num_classes=FEW).train(), POLICIES["tight"]())
    tuned.checkpointing = True
    with Activations() as seen:
        backward(tuned, x := images(tuned.backbone))
    tokens_seen, hidden, blocks = len(x) * 17, 128, 2
    assert sum(seen.numbers) == 2 * tokens_seen * hidden * blocks
    assert max(seen.numbers) < tokens_seen * hidden


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("most", [4, 1 << 20])
def test_an_mlp_of_which_much_trains_is_left_whole(most: int, monkeypatch) -> None:
    monkeypatch.setattr(tokens, "TRAINED", most)
    tuned = compress(apply(tiny("vit"), Full(), num_classes=FEW), POLICIES["tight"]())
    tuned.checkpointing = True
    with Activations() as seen:
        backward(tuned, images(tuned.backbone))
    assert (len(set(seen.numbers)) == 1) is (most == 4)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("tied", [False, True])
def test_only_a_last_map_of_its_own_is_not_computed_again(tied: bool) -> None:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", **small, mlp_ratio=1.0, num_classes=FEW)
    model = wake(model.double())
    if tied:
        for block in model.blocks:
            block.mlp.fc2.weight = block.mlp.fc1.weight
    same(*twins(model, PIECES, LoRA(rank=2)))


class Activations(TorchDispatchMode):
    """How many numbers each call of GELU is given."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.gelu.default:
            self.numbers.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def reference(tuned: Tuned, x: Tensor, codec: Affine) -> tuple[Tensor, dict[str, Tensor]]:
    """Walk the chain rule by hand: each block's vjp at what the codec gives back of its input."""
    family: Family = tuned.family
    blocks = [tuned.backbone.get_submodule(p) for p in family.chain(tuned.backbone)]
    with torch.no_grad():
        h = [family.stem(tuned.backbone, x)]
        for block in blocks:
            h.append(block(h[-1]))
    last = h[-1].clone().requires_grad_()
    y = tuned.backbone.forward_head(family.finish(tuned.backbone, last))
    y.backward(cotangent(y, 1))
    dy = last.grad
    for block, exact in zip(reversed(blocks), reversed(h[:-1]), strict=True):
        kept = codec.unpack(codec.pack(Residue(exact)), exact.shape, exact.dtype)
        kept.requires_grad_()
        block(kept).backward(dy)
        dy = kept.grad
    return y, gradients(tuned)


@pytest.mark.parametrize("name", ["bias", "lora", "ssf", "full"])
@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "mixer", "sam"])
def test_the_gradient_is_that_of_blocks_at_their_rounded_inputs(name: str, family: str) -> None:
    tuned, twin = twins(tiny(family), CODED, METHODS[name]())
    for part in tuned.modules():
        if hasattr(part, "drop_prob"):
            part.drop_prob = 0.0
    for part in twin.modules():
        if hasattr(part, "drop_prob"):
            part.drop_prob = 0.0
    x, exact = images(tuned.backbone), copy.deepcopy(tuned)
    y, wanted = reference(tuned, x, CODED.block)
    near(backward(twin, x), y)
    backward(exact, x)
    stem, moved = [n for n in wanted if "patch_embed" in n or ".stem" in n], 0.0
    got, plain = gradients(twin), gradients(exact)
    for n in wanted.keys() - set(stem):
        near(got[n], wanted[n])
        moved = max(moved, (plain[n] - wanted[n]).abs().max().item())
    assert moved > 1e-6


class Detector(nn.Module):
    """Encoder and decoder: layers take a memory beside what they carry on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.place = nn.Parameter(torch.randn(1, 16, 16))
        self.queries = nn.Parameter(torch.randn(1, 5, 16))
        self.body = nn.Transformer(16, 2, 2, 3, 32, 0.1, batch_first=True)
        self.classify = nn.Linear(16, FEW)
        self.pretrained_cfg, self.num_classes = {"input_size": (3, 32, 32)}, FEW

    def forward(self, x: Tensor) -> Tensor:
        memory = self.body.encoder(self.stem(x).flatten(2).mT + self.place)
        found = self.queries.expand(len(x), -1, -1)
        for layer in self.body.decoder.layers:
            found = layer(found, memory=memory, memory_mask=None)
        return self.classify(self.body.decoder.norm(found)).mean(1)


@pytest.mark.parametrize("policy", [LOSSLESS, POLICIES["tight"]()], ids=["lossless", "tight"])
def test_layers_that_share_a_memory(policy: Policy) -> None:
    tuned, twin = twins(wake(Detector().double()), policy, Full())
    paths = {p for p, m in twin.backbone.named_modules() if any(m is part for part in twin.parts)}
    assert {"body.decoder.layers.0", "body.decoder.layers.2"} <= paths
    if policy is LOSSLESS:
        return same(tuned, twin)
    x = images(tuned.backbone)
    assert torch.equal(backward(twin, x), backward(tuned, x))
    a, b = (torch.cat([g.flatten() for g in gradients(m).values()]) for m in (tuned, twin))
    assert F.cosine_similarity(a, b, dim=0) > 0.98


def test_of_a_block_its_input_is_kept_as_the_codec_says() -> None:
    tuned, twin = twins(tiny("vit"), CODED, Bias())
    x = images(tuned.backbone)
    exact = copy.deepcopy(tuned)
    exact.checkpointing = True
    h = tuned.family.stem(tuned.backbone, x)
    blocks = len(tuned.blocks)
    fewer = blocks * (h.nbytes - CODED.block.nbytes(h.shape, h.dtype))
    assert kept_bytes(exact, x) - kept_bytes(twin, x) == fewer


def test_the_first_blocks_are_recomputed_and_the_others_kept() -> None:
    tuned = apply(tiny("vit"), Bias())
    x, sizes = images(tuned.backbone), []
    for count in range(len(tuned.blocks) + 1):
        tuned.checkpointing = count
        sizes.append(kept_bytes(tuned, x))
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert tuned.checkpointing == 4
    with pytest.raises(InputError, match="VisionTransformer has 4 blocks to recompute, not 5"):
        tuned.checkpointing = 5
    assert tuned.checkpointing == 4
    with pytest.raises(InputError, match="give --checkpointing"):
        StepConfig(recomputed_blocks=2)
    assert StepConfig(policy="blocks").checkpointing


@pytest.mark.parametrize("policy", ["blocks", "tight"])
@pytest.mark.parametrize(
    "change",
    [
        {"attn_drop_rate": 0.3, "proj_drop_rate": 0.3},
        {"drop_path_rate": 0.5},
        {"norm_layer": nn.BatchNorm1d},
    ],
    ids=str,
)
def test_noise_is_drawn_once_and_statistics_move_once(policy: str, change: dict) -> None:
    if "norm_layer" in change:
        model = wake(models.resnet18(num_classes=FEW).double())
        model.pretrained_cfg = {"input_size": (3, 64, 64)}
    else:
        kind = type(tiny("vit"))
        options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
        model = wake(kind(**options, num_classes=FEW, **change).double())
    lossless = LOSSLESS if policy == "blocks" else POLICIES["tight"]()
    tuned, twin = twins(model, lossless, Full())
    tuned = compress(tuned, Policy() if policy == "blocks" else lossless)
    x = images(tuned.backbone)
    if policy == "blocks":
        return same(tuned, twin)
    assert torch.equal(backward(twin, x), backward(tuned, x))
    a, b = (torch.cat([g.flatten() for g in gradients(m).values()]) for m in (tuned, twin))
    assert F.cosine_similarity(a, b, dim=0) > 0.97
    for (name, buffer), again in zip(tuned.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, again), name


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("policy", ["blocks", "tight"])
@pytest.mark.parametrize("family", ["vit", "swin", "resnet", "generic"])
def test_autocast_and_micro_batches(policy: str, family: str) -> None:
    model = tiny(family).float()
    tuned = compress(apply(model, LoRA(rank=2), num_classes=FEW), POLICIES[policy]()).eval()
    stir(tuned)
    x, rows = images(tuned.backbone, batch=4), []
    for tuned.checkpointing in (False, True):
        tuned.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            for part in x.chunk(2):
                backward(tuned, part)
        rows.append(torch.cat([g.flatten() for g in gradients(tuned).values()]))
    assert F.cosine_similarity(*rows, dim=0) > 0.97


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("method", ["lora", "bias"])
@pytest.mark.parametrize("dtype", ["bf16", "nf4"])
def test_pieces_of_frozen_weights_in_few_bits(method: str, dtype: str) -> None:
    tuned = apply(tiny("vit").float(), METHODS[method](), num_classes=FEW).eval()
    stir(set_frozen_dtype(tuned, dtype))
    x, rows = images(tuned.backbone).float(), []
    for policy, tuned.checkpointing in (("exact", False), ("tight", True)):
        tuned.zero_grad()
        backward(compress(tuned, POLICIES[policy]()), x)
        rows.append(torch.cat([g.flatten() for g in gradients(tuned).values()]))
    assert F.cosine_similarity(*rows, dim=0) > 0.98


def test_a_weight_written_to_before_backward_is_refused() -> None:
    tuned, twin = twins(tiny("vit"), LOSSLESS, LoRA(rank=2))
    y = twin(images(tuned.backbone))
    with torch.no_grad():
        next(p for n, p in twin.named_parameters() if p.requires_grad and "blocks" in n).add_(1)
    with pytest.raises(RuntimeError, match="modified by an in-place operation"):
        y.sum().backward()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_first_run_packs_nothing_unless_packing_draws_noise(rounding, monkeypatch) -> None:
    """Where an output is dropped its input has no gradient: both runs drew the same."""
    model = nn.Sequential(nn.GELU(), nn.Dropout(0.5)).double()
    compress(model, Policy({"gelu": Affine(4, 16, rounding)}, block=LOSSLESS.block))
    x, packed, pack = torch.randn(16, 16, dtype=torch.double, requires_grad=True), [], Affine.pack
    monkeypatch.setattr(Affine, "pack", lambda c, r: packed.append(len(r.source)) or pack(c, r))
    y = recompute(model, model, x)
    assert packed == ([16, 0] if rounding == "nearest" else [16, 16])
    y.backward(cotangent(y, 1))
    assert packed[2:] == [16]
    assert torch.equal(y == 0, x.grad == 0) and 64 < (y == 0).sum() < 192


@pytest.mark.parametrize("policy", ["blocks", "tight"])
def test_compiles_without_a_break(policy: str) -> None:
    _, twin = twins(tiny("vit"), POLICIES[policy](), LoRA(rank=2))
    x, eager = images(twin.backbone), copy.deepcopy(twin)
    torch.compiler.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="eager")
    near(backward(compiled, x), backward(eager, x))
    a, b = (torch.cat([g.flatten() for g in gradients(m).values()]) for m in (twin, eager))
    assert F.cosine_similarity(a, b, dim=0) > 0.99


def test_a_policy_of_blocks_recomputes_them_or_refuses() -> None:
    tuned = apply(tiny("vit").float(), METHODS["bias"]()).train()
    x = images(tuned.backbone)
    exact = kept_bytes(tuned, x)
    compress(tuned, "blocks")
    assert tuned.checkpointing == len(tuned.backbone.blocks)
    assert kept_bytes(tuned, x) < exact / 4
    plain = tiny("vit").float()
    with pytest.raises(Unsupported, match="does not say which: expected a model of lowtide.apply"):
        compress(plain, "blocks")
    assert type(plain).__module__.startswith("timm.") and not hasattr(plain, "_lowtide_plain")

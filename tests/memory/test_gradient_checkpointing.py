"""Blocks that keep their input in codes and run again in backward."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import COMBINATIONS, FEW, backward, cotangent, images, near, stir, tiny, wake
from steps import real_step
from torch import Tensor, nn
from torchvision import models

from lowtide import METHODS, POLICIES, InputError, Policy, StepConfig, compress, plan
from lowtide.codecs.affine import Affine
from lowtide.codecs.base import Residue
from lowtide.errors import Unsupported
from lowtide.families import FAMILIES, Family
from lowtide.methods.bias import Bias
from lowtide.methods.full import Full
from lowtide.methods.lora import LoRA
from lowtide.tuning.tuned import Tuned, apply

LOSSLESS = Policy(block=Affine(8, group=1))
"""A group of one number is its own minimum."""
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


def saved(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps."""
    kept: dict[int, Tensor] = {}
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage()._cdata, t), lambda t: t
    ):
        y = model(x)
    y.sum().backward()
    return sum(t.untyped_storage().nbytes() for k, t in kept.items() if k not in own)


def test_of_a_block_its_input_is_kept_as_the_codec_says() -> None:
    tuned, twin = twins(tiny("vit"), CODED, Bias())
    x = images(tuned.backbone)
    exact = copy.deepcopy(tuned)
    exact.checkpointing = True
    h = tuned.family.stem(tuned.backbone, x)
    blocks = len(tuned.blocks)
    fewer = blocks * (h.nbytes - CODED.block.nbytes(h.shape, h.dtype))
    assert saved(exact, x) - saved(twin, x) == fewer


def test_the_first_blocks_are_recomputed_and_the_others_kept() -> None:
    tuned = apply(tiny("vit"), Bias())
    x, sizes = images(tuned.backbone), []
    for count in range(len(tuned.blocks) + 1):
        tuned.checkpointing = count
        sizes.append(saved(tuned, x))
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


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(
    ("name", "policy", "count"),
    [("lora", "blocks", None), ("full", "tight", None), ("lora", "tight", 2), ("s2a", "blocks", 1)],
)
def test_plan_equals_the_real_step(family: str, name: str, policy: str, count: int | None) -> None:
    model, method = tiny(family).float(), METHODS[name]()
    step = StepConfig(batch_size=3, policy=policy, checkpointing=True, recomputed_blocks=count)
    _, real = real_step(model, method, step)
    planned = plan(model, method, step=step)
    assert planned.peak_bytes == real.peak_bytes
    assert planned.parts == real.parts


def test_a_weight_written_to_before_backward_is_refused() -> None:
    tuned, twin = twins(tiny("vit"), LOSSLESS, LoRA(rank=2))
    y = twin(images(tuned.backbone))
    with torch.no_grad():
        next(p for n, p in twin.named_parameters() if p.requires_grad and "blocks" in n).add_(1)
    with pytest.raises(RuntimeError, match="modified by an in-place operation"):
        y.sum().backward()


def test_promised_peaks() -> None:
    """ViT-B/16, batch 32, 224 pixels, 100 classes, AdamW: MiB at the peak."""
    limits = {("lora", "tight"): 500, ("lora", "blocks"): 520}
    for (name, policy), most in limits.items():
        step = StepConfig(policy=policy, checkpointing=True)
        peak = plan("vit_base_patch16_224", METHODS[name](), step=step, num_classes=100).peak_bytes
        assert 0.9 * most < peak / 2**20 <= most, (name, policy)

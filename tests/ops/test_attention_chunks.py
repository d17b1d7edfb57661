"""Attention, its bias and MLPs in chunks: small temporaries on a large image, the same outputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from nets import cotangent, wake
from steps import real_step
from torch import Tensor, nn

import lowtide
from lowtide import StepConfig
from lowtide.codecs.exact import Exact
from lowtide.core.method import METHODS
from lowtide.memory.compress import compress, decompress
from lowtide.memory.policy import Policy
from lowtide.ops import NAMES
from lowtide.ops.attention_windows import windows_at_once
from lowtide.ops.softmax import softmax_backward
from lowtide.versions import on_meta

ROWS = "lowtide.ops.attention_chunks.CHUNK"
EXACTLY = Policy({name: Exact() for name in NAMES})
AGAIN = Policy({name: Exact() for name in NAMES}, recompute=Exact())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 9, 130), (4, 1)])
def test_a_softmax_s_gradient_takes_the_place_of_what_it_is_made_of(shape, dtype) -> None:
    torch.manual_seed(0)
    y, dy = torch.softmax(torch.randn(shape), -1).to(dtype), torch.randn(shape, dtype=dtype)
    expected, own = softmax_backward(dy, y), dy.clone()
    assert softmax_backward(own, y, own=True).data_ptr() == own.data_ptr()
    assert torch.equal(own, expected)


def sam(size: int = 128, **options: Any) -> nn.Module:
    """A block with windows and one without, 64 tokens in the latter at 128 pixels."""
    given = {"embed_dim": 32, "depth": 2, "num_heads": 2, "window_size": 3, "neck_chans": 16}
    given |= {"global_attn_indexes": (1,), "img_size": size, "num_classes": 4}
    return wake(timm.create_model("samvit_base_patch16", **{**given, **options}))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y, (x, *model.parameters()), cotangent(y, 0))]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [256, 272, 304])
def test_a_forward_in_chunks_of_rows_is_that_of_the_whole(
    size: int, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, also where the last chunk would be a row or few: 17 x 17 is 4 x 64 + 33."""
    model = sam(size).to(dtype).eval()
    x = torch.randn(2, 3, size, size, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = model(x)
        monkeypatch.setattr(ROWS, 1)  # 64 rows of a head
        assert torch.equal(compress(model, "tight")(x), y)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("chunk", [1, 1 << 12, 1 << 21])
def test_gradients_of_a_relative_position_bias_that_is_never_made(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sam().double()
    x = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    plain = gradients(copy.deepcopy(model), x)
    monkeypatch.setattr(ROWS, chunk)
    for a, b in zip(gradients(compress(model, EXACTLY), x), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("changed", ["dropout", "no fused function", "no bias", "hooked"])
def test_what_cannot_be_cut_is_left_to_the_model(changed: str) -> None:
    model = sam(use_rel_pos=changed != "no bias").double().train()
    for module in model.modules():
        if hasattr(module, "attn_drop"):
            module.attn_drop.p = 0.3 * (changed == "dropout")
            module.fused_attn = changed != "no fused function"
            if changed == "hooked":
                module.qkv.register_forward_hook(lambda m, args, y: 2 * y)
    x = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    results = []
    for one in (copy.deepcopy(model), compress(model, EXACTLY)):
        torch.manual_seed(3)
        results.append(gradients(one, x))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", ["sam", "swin"])
def test_the_plan_in_chunks_is_the_real_step(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ROWS, 1 << 14)
    model = sam() if name == "sam" else swin("")
    step = StepConfig(batch_size=2, policy="tight")
    _, real = real_step(model, METHODS[method](), step)
    planned = lowtide.plan(model, METHODS[method](), step=step)
    assert (planned.peak_bytes, planned.parts) == (real.peak_bytes, real.parts)


SIZES = (224, 512, 1024)
CHUNK, TOKENS = 1 << 16, 1 << 14


def vit(size: int) -> nn.Module:
    given = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 4}
    return timm.create_model("vit_tiny_patch16_224", img_size=size, **given)


MODELS = {"vit": vit, "sam": sam}


def swin(version: str) -> nn.Module:
    """Two blocks of 3 x 3 windows of 64 tokens; those of the second are masked."""
    name = f"swin{version}_tiny_{'window8_256' if version else 'patch4_window7_224'}"
    given = {"embed_dim": 16, "depths": (2,), "num_heads": (2,), "drop_path_rate": 0.0}
    return wake(timm.create_model(name, img_size=96, window_size=8, num_classes=4, **given))


CUTS = {1: [1] * 18, 4: [4, 4, 1] * 2, 8: [8, 1, 8, 1], 9: [9, 9], 18: None}


@pytest.mark.parametrize("version", ["", "v2"])
@pytest.mark.parametrize("chunk", CUTS)
def test_attention_in_chunks_of_windows(
    version: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two images, whole or in parts, with the masks that belong to them."""
    monkeypatch.setattr(ROWS, chunk * 2 * 64**2)
    model, x = swin(version), torch.randn(2, 3, 96, 96)
    attention = model.layers[0].blocks[1].attn
    given = (type(attention), torch.empty(18, 64, 16), torch.empty(9, 64, 64))
    windows = windows_at_once(attention, *given)
    assert (windows and [at.stop - at.start for at in windows]) == CUTS[chunk]
    y = model(x)
    assert torch.equal(compress(model, "tight")(x), y)
    model, x = decompress(model).double(), x.double()
    plain = gradients(model, x)
    for a, b in zip(gradients(compress(model, AGAIN), x), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("changed", ["dropout", "hooked"])
def test_windows_that_may_meet_are_not_cut(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ROWS, 1)
    model, x = swin("").double().train(), torch.randn(2, 3, 96, 96, dtype=torch.float64)
    for block in model.layers[0].blocks:
        if changed == "dropout":
            block.attn.attn_drop.p = 0.3
        else:
            block.attn.qkv.register_forward_hook(lambda m, args, y: y - y.mean(0))
    results = []
    for one in (copy.deepcopy(model), compress(model, AGAIN)):
        torch.manual_seed(3)
        results.append(gradients(one, x))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_temporaries_grow_as_the_image_and_not_as_its_square(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 14 tensors of the image's tokens, and 5 chunks of what is larger in between.

    The whole matrix of one head is 4096 x 4096 numbers at 1024 pixels, 64 MiB.
    """
    monkeypatch.setattr(ROWS, CHUNK)
    for size in SIZES:
        with on_meta():
            model = MODELS[name](size)
        step = StepConfig(policy="tight", batch_size=1, chunk=TOKENS)
        planned = lowtide.plan(model, METHODS["lora"](), step=step)
        parts = planned.parts
        stream = 4 * (size // 16) ** 2 * 32
        image = 4 * 3 * size**2
        rows = max(CHUNK, 64 * (size // 16) ** 2)
        assert parts["temporaries"] <= image + 14 * stream + 5 * 4 * rows, size

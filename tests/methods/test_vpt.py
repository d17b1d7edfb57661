"""VPT against plain statements: tokens in a sequence, tokens in every window, a border."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from counts import trained
from nets import FEW, TABLES, images, near, stir, tiny
from torch import Tensor

import lowtide
from lowtide.core.method import METHODS
from lowtide.errors import Unsupported
from lowtide.methods.vpt import VPT


@pytest.mark.parametrize(
    "backbone, method, count",
    [
        ("vit", VPT(), 460_800),
        ("vit", VPT(depth="shallow"), 38_400),
        ("swin", VPT(), 601_600),
        ("swin", VPT(depth="shallow"), 6_400),
        ("convnext", VPT(), 3 * (234**2 - 224**2)),
    ],
)
def test_count(backbone: str, method: VPT, count: int) -> None:
    assert trained(backbone, method) == count


def test_it_starts_as_the_paper_draws() -> None:
    prompts = VPT(tokens=400).edits(_sites("vit"))[0].side(FEW).prompts["blocks-0"]
    bound = (6 / (3 * 8**2 + 32)) ** 0.5
    assert prompts.abs().max() <= bound and abs(prompts.std() / bound - 3**-0.5) < 0.02


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_tokens_stand_after_the_class_token_and_before_the_patches(depth: str) -> None:
    model = tiny("vit").eval()
    x = images(model)
    tuned = lowtide.apply(model, VPT(depth=depth, tokens=3)).eval()
    stir(tuned)
    state = tuned.adapter_state()
    z = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for i, block in enumerate(model.blocks):
        if i == 0 or depth == "deep":
            prompts = state[f"./vpt/prompts.blocks-{i}"].expand(len(x), -1, -1)
            patches = z[:, 1:] if i == 0 else z[:, 4:]
            z = torch.cat([z[:, :1], prompts, patches], 1)
        z = block(z)
    near(tuned(x), model.head(model.norm(z)[:, 0]))


def plain_swin_block(block: object, x: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """One image at a time, one window at a time, one head at a time."""
    (w, _), (shift, _), heads = block.window_size, block.shift_size, block.attn.num_heads
    n, c = prompts.shape[1:]
    out, seen = torch.empty_like(x), torch.zeros_like(prompts)
    bias = F.pad(block.attn._get_rel_pos_bias()[0], (n, 0, n, 0))
    for b in range(len(x)):
        y = torch.roll(block.norm1(x[b]), (-shift, -shift), (0, 1))
        z = torch.empty_like(y)
        windows = [(i, j) for i in range(0, len(y), w) for j in range(0, y.shape[1], w)]
        for k, (i, j) in enumerate(windows):
            inside = y[i : i + w, j : j + w].reshape(w * w, c)
            t = torch.cat([block.norm1(prompts[b]), inside])
            q, key, v = block.attn.qkv(t).split(c, 1)
            parts = []
            for h in range(heads):
                s = slice(h * c // heads, (h + 1) * c // heads)
                logits = q[:, s] @ key[:, s].T * (c // heads) ** -0.5 + bias[h]
                if block.attn_mask is not None:
                    logits = logits + F.pad(block.attn_mask[k], (n, 0, n, 0))
                parts.append(logits.softmax(1) @ v[:, s])
            t = block.attn.proj(torch.cat(parts, 1))
            seen[b] += t[:n] / len(windows)
            z[i : i + w, j : j + w] = t[n:].reshape(w, w, c)
        out[b] = torch.roll(z, (shift, shift), (0, 1))
    x, prompts = x + out, prompts + seen
    return x + block.mlp(block.norm2(x)), prompts + block.mlp(block.norm2(prompts))


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_every_window_sees_the_prompts_of_its_image(depth: str) -> None:
    model = tiny("swin").eval()
    x = images(model)
    tuned = lowtide.apply(model, VPT(depth=depth, tokens=3)).eval()
    stir(tuned)
    state = tuned.adapter_state()
    z, prompts = model.patch_embed(x), x
    for i, stage in enumerate(model.layers):
        if i:
            z = stage.downsample(z)
            if depth == "shallow":
                fourfold = torch.cat([prompts] * 4, -1)
                prompts = stage.downsample.reduction(stage.downsample.norm(fourfold))
        for j, block in enumerate(stage.blocks):
            if depth == "deep" or i == j == 0:
                prompts = state[f"./vpt/prompts.layers-{i}-blocks-{j}"].expand(len(x), -1, -1)
            z, prompts = plain_swin_block(block, z, prompts)
    near(tuned(x), model.head(model.norm(z)))


@pytest.mark.parametrize("depth", ["deep", "shallow"])
@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet"])
def test_images_stay_apart(family: str, depth: str) -> None:
    model = tiny(family)
    x = images(model, batch=4)
    tuned = lowtide.apply(model, VPT(depth=depth, tokens=3), num_classes=FEW).eval()
    stir(tuned)
    near(tuned(x), torch.cat([tuned(one) for one in x.split(1)]))


def test_a_border_of_pixels() -> None:
    model = tiny("convnext").eval()
    x = images(model)
    tuned = lowtide.apply(model, VPT(pixels=2)).eval()
    after = tuned(x)
    rows, columns = (tuned.adapter_state()[f"stem.0/vpt/{n}"] for n in ("rows", "columns"))
    big = F.pad(x, (2, 2, 2, 2))
    big[:, :, :2], big[:, :, -2:] = rows
    big[:, :, 2:-2, :2], big[:, :, 2:-2, -2:] = columns
    with tuned.disable_adapter():
        near(model(big), after)


@pytest.mark.parametrize("depth", ["deep", "shallow"])
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_dropout_draws_for_each_image(family: str, depth: str) -> None:
    model = tiny(family)
    tuned = lowtide.apply(model, VPT(depth=depth, dropout=0.1)).train()
    stir(tuned)
    logits = tuned(images(model, batch=1).expand(6, -1, -1, -1))
    apart = (logits[:, None] - logits).abs().amax(2)[~torch.eye(6, dtype=torch.bool)]
    assert apart.min() > 1e-4


def test_dropout_is_by_default_that_of_the_depth() -> None:
    for depth, rate in (("deep", 0.1), ("shallow", 0.0)):
        side = VPT(depth=depth).edits(_sites("vit"))[0].side(FEW)
        assert side.drop.p == rate
    assert VPT(depth="shallow", dropout=0.3).edits(_sites("vit"))[0].side(FEW).drop.p == 0.3


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_prompts_may_be_pooled_with_the_patches(depth: str) -> None:
    model = tiny("swin").eval()
    x, seen = images(model), []
    tuned = lowtide.apply(model, VPT(depth=depth, tokens=3, pool_prompts=True)).eval()
    stir(tuned)
    side = tuned.sides["vpt"]
    side.finish = lambda z, state: seen.extend((z, state)) or z
    tuned(x)
    del side.finish
    patches, prompts = model.norm(seen[0]).flatten(1, 2), model.norm(seen[1])
    assert prompts.shape[1] == 3
    near(tuned(x), model.head.fc((patches.sum(1) + prompts.sum(1)) / (patches.shape[1] + 3)))
    for family in ("vit", "convnext"):
        with pytest.raises(Unsupported, match="vpt's pool_prompts is for backbones of windows"):
            lowtide.apply(tiny(family), VPT(pool_prompts=True))


def test_prompts_are_dropped_in_training_only() -> None:
    tuned = lowtide.apply(tiny("vit").eval(), VPT(dropout=0.5))
    x = images(tuned.backbone)
    near(tuned.eval()(x), tuned(x))
    assert (tuned.train()(x) - tuned(x)).abs().max() > 1e-6


def _sites(family: str) -> lowtide.core.site.Sites:
    return lowtide.families.measure(tiny(family), TABLES[family])


def test_another_graft_around_window_attention_is_refused() -> None:
    model = tiny("swin")
    with pytest.raises(Unsupported, match="vpt.*stands around it"):
        lowtide.apply(model, VPT(), METHODS["conv_adapter"]())
    tuned = lowtide.apply(model, VPT(), METHODS["lora"](), METHODS["bias"](), num_classes=FEW)
    assert tuned(images(model)).shape == (3, FEW)


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_a_side_network_inside_or_around_lets_the_tokens_pass(depth: str) -> None:
    prompts, side = VPT(depth=depth, tokens=3), METHODS["dtl"](start_block=2)
    inside = lowtide.apply(tiny("vit"), prompts, side, num_classes=FEW).eval()
    stir(inside)
    around = lowtide.apply(tiny("vit"), side, prompts, num_classes=FEW).eval()
    around.load_adapter_state(inside.adapter_state())
    x = images(inside.backbone)
    near(around(x), inside(x))

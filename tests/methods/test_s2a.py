"""S2A: the paper's counts, each part by itself, and the branch written out plainly."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from counts import trained
from nets import FEW, images, near, stir, tiny
from torch import Tensor

import lowtide
from lowtide.errors import Unsupported
from lowtide.methods.s2a import S2A, _fit

CONVNEXT = S2A(prompt_every=2, affine=False)
HEAD = {"vit": 76_900, "swin": 102_500, "convnext": 102_500}


@pytest.mark.parametrize(
    "backbone, method, total",
    [("vit", S2A(), 775_276), ("swin", S2A(), 889_428), ("convnext", CONVNEXT, 858_516)],
    ids=["vit", "swin", "convnext"],
)
def test_count_with_the_head_of_100_classes(backbone: str, method: S2A, total: int) -> None:
    assert trained(backbone, method) + HEAD[backbone] == total


OFF = {"bias": False, "prompt": False, "side": False}
CONV = {"prompt_every": 2, "affine": False}


@pytest.mark.parametrize(
    "backbone, options, bias, prompt, side",
    [
        ("vit", {}, 102_912, 347_400, 238_464 + 9_600),
        ("swin", {}, 137_216, 396_240, 240_672 + 12_800),
        ("convnext", {}, 130_304, 594_360, 361_008 + 12_800),
        ("convnext", CONV, 130_304, 265_440, 347_472 + 12_800),
    ],
    ids=["vit", "swin", "convnext", "convnext preset"],
)
def test_parts_are_switched_by_themselves_and_add_up(
    backbone: str, options: dict, bias: int, prompt: int, side: int
) -> None:
    parts = {"bias": bias, "prompt": prompt, "side": side}
    for name, count in parts.items():
        assert trained(backbone, S2A(**{**OFF, name: True}, **options)) == count
    assert trained(backbone, S2A(**options)) == sum(parts.values())


def test_without_the_branch_prompt_and_bias_fit_a_backbone_of_no_table() -> None:
    tuned = lowtide.apply(tiny("generic"), S2A(side=False))
    assert any("/s2a/bias" in k for k in tuned.adapter_state())
    with pytest.raises(Unsupported, match="nothing to train"):
        lowtide.apply(tiny("generic"), S2A(**OFF))


def test_the_prompt_is_added_to_the_input_of_attention() -> None:
    model = tiny("vit").eval()
    qkv = model.blocks[2].attn.qkv
    tuned = lowtide.apply(model, S2A(bias=False, side=False, rank=3)).eval()
    stir(tuned)
    state = tuned.adapter_state()
    a, b = (state[f"blocks.2.attn.qkv/s2a/{n}"] for n in "AB")
    assert a.shape == (17, 3) and b.shape == (3, 32)
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    near(model.blocks[2].attn.qkv(x), (x + a @ b) @ qkv.weight.T + qkv.bias)
    with pytest.raises(Unsupported, match="17 positions and the input 20"):
        model.blocks[2].attn.qkv(torch.randn(2, 20, 32, dtype=torch.float64))


def test_the_prompt_of_attention_in_square_windows_differs_from_place_to_place() -> None:
    model = tiny("maxvit").eval()
    path = "stages.0.blocks.0.attn_grid.attn.qkv"
    qkv = model.get_submodule(path)
    tuned = lowtide.apply(model, S2A(bias=False, side=False, rank=3)).eval()
    stir(tuned)
    a, b = (tuned.adapter_state()[f"{path}/s2a/{n}"] for n in "AB")
    assert a.shape == (16, 3)
    x = torch.randn(5, 4, 4, 24, dtype=torch.float64)
    moved = x.clone()
    for row in range(4):
        for column in range(4):
            moved[:, row, column] += a[4 * row + column] @ b
    near(model.get_submodule(path)(x), qkv(moved))


def test_a_convolution_s_prompt_is_a_tile_repeated_over_the_grid() -> None:
    model = tiny("convnext").eval()
    conv = model.stages[0].blocks[0].conv_dw
    tuned = lowtide.apply(model, S2A(bias=False, side=False, rank=3, tile=7)).eval()
    stir(tuned)
    state = tuned.adapter_state()
    a, b = (state[f"stages.0.blocks.0.conv_dw/s2a/{n}"] for n in "AB")
    prompt = a @ b
    assert prompt.shape == (49, 24)
    x = torch.randn(2, 24, 16, 16, dtype=torch.float64)
    moved = x.clone()
    for row in range(16):
        for column in range(16):
            moved[:, :, row, column] += prompt[7 * (row % 7) + column % 7]
    near(model.stages[0].blocks[0].conv_dw(x), conv(moved))


def cap(x: Tensor, groups: int) -> Tensor:
    """Mean over groups of neighbouring channels, written as a loop."""
    means = [x[..., i : i + groups].mean(-1) for i in range(0, x.shape[-1], groups)]
    return torch.stack(means, -1)


def test_the_branch_on_a_vit_written_out() -> None:
    """y_i = LN PW relu LN DW relu LN PW (CAP(x_i) + y_{i-1}); the class token skips DW."""
    model = tiny("vit").eval()
    tuned = lowtide.apply(model, S2A(bias=False, prompt=False), num_classes=FEW).eval()
    stir(tuned)
    x = images(model)
    state = {
        k.removeprefix("./s2a/branches."): v for k, v in tuned.adapter_state().items() if "s2a" in k
    }

    def norm(y: Tensor, name: str) -> Tensor:
        return F.layer_norm(y, (4,), state[f"{name}.weight"], state[f"{name}.bias"])

    h, y = model.norm_pre(model._pos_embed(model.patch_embed(x))), 0
    for i, block in enumerate(model.blocks):
        h = block(h)
        y = cap(h, 8) + y
        y = F.relu(norm(y @ state[f"blocks-{i}.pw1.weight"].T, f"blocks-{i}.norm1"))
        grid = y[:, 1:].transpose(1, 2).reshape(-1, 4, 4, 4)
        grid = F.conv2d(grid, state[f"blocks-{i}.dw.weight"], padding=1, groups=4)
        y = torch.cat([y[:, :1], grid.flatten(2).transpose(1, 2)], 1)
        y = F.relu(norm(y, f"blocks-{i}.norm2"))
        y = norm(y @ state[f"blocks-{i}.pw2.weight"].T, f"blocks-{i}.norm3")
    features = torch.cat([model.norm(h)[:, 0], y.mean(1)], -1)
    w = torch.cat([model.head.weight, tuned.adapter_state()["./s2a/head.weight"]], 1)
    near(tuned(x), features @ w.T + model.head.bias)


@pytest.mark.parametrize("family", ["swin", "convnext", "resnet"])
def test_between_stages_the_state_is_pooled_and_its_channels_repeated(family: str) -> None:
    tuned = lowtide.apply(tiny(family), S2A(bias=False, prompt=False))
    branches, changed = list(tuned.sides["s2a"].branches.values()), 0
    for before, branch in itertools.pairwise(branches):
        if branch.grid == before.grid:
            continue
        changed += 1
        c = branch.pw1.in_features
        (h, w), (h0, w0) = branch.grid, before.grid
        assert (h0, w0) == (2 * h, 2 * w)
        state = torch.randn(2, h0 * w0, c // 2 if family == "swin" else c)
        blocks = state.reshape(2, h, 2, w, 2, -1).mean((2, 4)).flatten(1, 2)
        fitted = _fit(state, before.grid, torch.zeros(2, h * w, c), branch.grid)
        near(fitted, blocks.repeat_interleave(c // blocks.shape[2], 2), 1e-6)
    assert changed >= 1


def test_a_width_cap_cannot_divide_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"averages 7 channels into one.*has 32"):
        lowtide.apply(tiny("vit"), S2A(reduction=7))


@pytest.mark.parametrize("option", ["rank", "reduction", "prompt_every", "tile"])
def test_wrong_options_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        S2A(**{option: 0})


def test_a_prompt_is_resampled_for_another_image_size() -> None:
    """A plane over the grid stays that plane; the class token keeps its row."""
    model = tiny("vit")
    tuned = lowtide.apply(model, S2A(bias=False, side=False, rank=2), num_classes=FEW).eval()
    state = tuned.adapter_state()
    key = "blocks.0.attn.qkv/s2a/A"
    centres = (torch.arange(4, dtype=torch.float64) + 0.5) / 4
    state[key] = torch.cat([
        torch.tensor([[7.0, -7.0]]),
        torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1).reshape(16, 2),
    ]).double()
    large = tiny("vit")
    large.set_input_size((64, 64))
    other = lowtide.apply(large, S2A(bias=False, side=False, rank=2), num_classes=FEW)
    other.load_adapter_state(state)
    loaded = other.adapter_state()[key]
    assert loaded.shape == (65, 2)
    near(loaded[0], state[key][0])
    inner = loaded[1:].reshape(8, 8, 2)[2:-2, 2:-2]
    centres = (torch.arange(8, dtype=torch.float64)[2:-2] + 0.5) / 8
    near(inner, torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1), 0.02)
    graft = other.backbone.blocks[0].attn.qkv
    near(graft._rows(graft.A, 17)[0], loaded[0])

"""SSF against its equation written out, its published counts, its folding rules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from counts import on_meta, trained
from nets import images, near, stir, tiny, wake
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import lowtide
from lowtide.errors import Unsupported
from lowtide.methods.lora import LoRA
from lowtide.methods.ssf import SSF


@pytest.mark.parametrize(
    "backbone, count", [("vit", 205_824), ("swin", 274_432), ("convnext", 260_608)]
)
def test_count(backbone: str, count: int) -> None:
    assert trained(backbone, SSF()) == count


@pytest.mark.parametrize("backbone, count", [("swin", 267_264), ("convnext", 255_232)])
def test_the_count_of_the_authors_code_is_the_one_the_paper_rounds(
    backbone: str, count: int
) -> None:
    """Table 5, in millions, classifiers of 100 and 1000 included."""
    assert trained(backbone, SSF(stages=False)) == count
    printed = {"swin": ("0.37", "1.29"), "convnext": ("0.36", "1.28")}[backbone]
    assert tuple(f"{(count + 1025 * k) / 1e6:.2f}" for k in (100, 1000)) == printed


def test_without_stages_only_what_changes_stage_is_left_out() -> None:
    for family, paths in {
        "swin": {"layers.1.downsample.norm"},
        "convnext": {f"stages.{i}.downsample.{j}" for i in (1, 2, 3) for j in (0, 1)},
        "as_mlp": {"stages.1.downsample.norm"},
        "vit": set(),
    }.items():
        every, some = (
            {k.partition("/")[0] for k in lowtide.apply(tiny(family), m).adapter_state()}
            for m in (SSF(), SSF(stages=False))
        )
        assert every - some == paths and some <= every


def test_places_on_a_vit() -> None:
    """Patch embedding, LN1, qkv, proj, LN2, fc1, fc2, final norm: 12 * 6 + 2 pairs."""
    tuned = on_meta("vit", SSF())
    paths = [k.partition("/")[0] for k in tuned.adapter_state() if k.endswith("gamma")]
    assert len(paths) == 74
    block = {"norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"}
    assert set(paths) == {"patch_embed.proj", "norm"} | {
        f"blocks.{i}.{m}" for i in range(12) for m in block
    }


def test_the_equation_and_its_fold() -> None:
    model = tiny("convnext")
    dw, fc1 = model.stages[0].blocks[0].conv_dw, model.stages[0].blocks[0].mlp.fc1
    tuned = lowtide.apply(model, SSF()).eval()
    stir(tuned)
    block, state = model.stages[0].blocks[0], tuned.adapter_state()
    for module, root, x in (
        (block.conv_dw, dw, torch.randn(2, 24, 9, 9)),
        (block.mlp.fc1, fc1, torch.randn(2, 3, 24)),
    ):
        path = next(n for n, m in model.named_modules() if m is module)
        gamma, beta = state[f"{path}/ssf/gamma"], state[f"{path}/ssf/beta"]
        x = x.double()
        near(module(x), gamma * root(x) + beta)
        near(module.merged()(x), gamma * root(x) + beta)


def test_it_starts_as_the_paper_draws_or_at_the_identity() -> None:
    torch.manual_seed(1)
    model = tiny("vit")
    state = lowtide.apply(model, SSF()).adapter_state()
    gammas = torch.cat([v.flatten() for k, v in state.items() if k.endswith("gamma")])
    betas = torch.cat([v.flatten() for k, v in state.items() if k.endswith("beta")])
    for drawn, centre in ((gammas, 1), (betas, 0)):
        assert abs(drawn.mean() - centre) < 0.002 and abs(drawn.std() - 0.02) < 0.002
    model = tiny("vit").eval()
    x = images(model)
    before = model(x)
    near(lowtide.apply(model, SSF(init="identity")).eval()(x), before)


def test_inner_and_outer_grafts_compose_in_the_order_given() -> None:
    """ssf then lora: gamma (W x) + beta + s B A x; lora then ssf scales the update as well."""
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    for first, second in ((SSF(), LoRA()), (LoRA(), SSF())):
        model = tiny("vit").eval()
        qkv = model.blocks[0].attn.qkv
        tuned = lowtide.apply(model, first, second).eval()
        stir(tuned)
        s = {k.removeprefix("blocks.0.attn.qkv/"): v for k, v in tuned.adapter_state().items()}
        a, b = ([s[f"lora/{f}.{i}.weight"] for i in (0, 1)] for f in ("down", "up"))
        update = torch.cat([x @ a[0].T @ b[0].T, torch.zeros(2, 5, 32), x @ a[1].T @ b[1].T], -1)
        gamma, beta = s["ssf/gamma"], s["ssf/beta"]
        if isinstance(first, SSF):
            near(model.blocks[0].attn.qkv(x), gamma * qkv(x) + beta + update)
        else:
            near(model.blocks[0].attn.qkv(x), gamma * (qkv(x) + update) + beta)


CONVNEXTS = {
    "v1": {},
    "v1, scales of 1e-6 as they start": {"asleep": True},
    "v1, convolutions for the MLP": {"conv_mlp": True},
    "v2": {"use_grn": True, "ls_init_value": None},
    "v2, convolutions for the MLP": {"use_grn": True, "ls_init_value": None, "conv_mlp": True},
    "stem of two": {"stem_type": "overlap_tiered", "conv_mlp": True},
    "norm before pooling": {"head_norm_first": True, "conv_mlp": True},
    "hidden classifier": {"head_hidden_size": 20},
    "no shrinking at the end": {"output_stride": 8, "kernel_sizes": (3, 5, 7, 9)},
    "RMS norm": {"norm_layer": "rmsnorm2d", "conv_mlp": True},
    "simple norm": {"norm_layer": "simplenorm", "conv_mlp": True},
    "all widths alike": {"dims": (24, 24, 24, 24)},
    "a last stage of one block": {"depths": (1, 1, 1, 1)},
}


def convnext(**options: Any) -> nn.Module:
    asleep = options.pop("asleep", False)
    sizes = {"depths": (1, 1, 1, 3), "dims": (16, 24, 24, 32), "num_classes": 5}
    model = ConvNeXt(**{**sizes, **options}).double()
    model.pretrained_cfg = {"input_size": (3, 64, 64)}
    scales = {n: p.clone() for n, p in model.named_parameters() if n.endswith(".gamma")}
    wake(model)
    for name, before in scales.items() if asleep else ():
        model.get_parameter(name).data.copy_(before)
    return model.eval()


@pytest.mark.parametrize("options", CONVNEXTS.values(), ids=CONVNEXTS)
def test_every_convnext_merges_into_the_plain_one(options: dict) -> None:
    model = convnext(**options)
    plain, x = copy.deepcopy(model), images(model)
    tuned = lowtide.apply(model, SSF()).eval()
    stir(tuned)
    expected = tuned(x)
    assert (expected - plain(x)).abs().max() > 1e-2
    merged = tuned.merge_and_unload()
    plain.load_state_dict(merged.state_dict())
    near(plain(x), expected, 1e-12)


def test_without_biases_it_is_scaled_up_to_the_last_shift() -> None:
    tuned = lowtide.apply(convnext(conv_bias=False), SSF()).eval()
    x = images(tuned.backbone)
    stir(tuned)
    expected = tuned(x)
    near(tuned.merge_and_unload()(x), expected, 1e-12)


@pytest.mark.parametrize(
    "spoil, said",
    [
        ("norm_pre.gamma", "its scale is 0 in 1 channels"),
        ("stages.3.blocks.2.gamma", r"stages.3.blocks.2.gamma is 0 in 1 channels"),
    ],
)
def test_what_would_divide_by_zero_is_refused(spoil: str, said: str) -> None:
    tuned = lowtide.apply(convnext(), SSF()).eval()
    tuned.backbone.get_parameter(spoil).data[3] = 0
    x = images(tuned.backbone)
    before = tuned(x)
    with pytest.raises(Unsupported, match=f"cannot merge ssf at norm_pre: {said}") as refusal:
        tuned.merge_and_unload()
    assert "\n" not in str(refusal.value)
    near(tuned(x), before)


def test_only_the_last_layer_scale_is_divided_by() -> None:
    """A branch that is switched off in an earlier block takes no shift."""
    model = convnext()
    model.stages[3].blocks[0].gamma.data.zero_()
    x = images(model)
    tuned = lowtide.apply(model, SSF()).eval()
    stir(tuned)
    expected = tuned(x)
    near(tuned.merge_and_unload()(x), expected, 1e-12)


def test_a_sum_that_a_norm_reads_is_refused() -> None:
    """gamma would have to pass a LayerNorm of all channels: a ViT that pools before its norm."""
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=2, global_pool="avg"
    )
    tuned = lowtide.apply(wake(model.double()), SSF())
    with pytest.raises(Unsupported, match="ssf at norm: what it scales is not the output of one"):
        tuned.merge_and_unload()


@pytest.mark.parametrize(
    "method, count",
    [
        (SSF(layers=2), 36_864),
        (SSF(layers=4), 70_656),
        (SSF(layers=8), 138_240),
        (SSF(without=("mlp",)), 113_664),
        (SSF(without=("attention",)), 132_096),
        (SSF(without=("embedding",)), 204_288),
        (SSF(without=("norm",)), 168_960),
        (SSF(scale="none"), 102_912),
        (SSF(shift=False), 102_912),
        (SSF(scale="scalar"), 102_912 + 74),
    ],
    ids=str,
)
def test_the_paper_s_ablations_have_its_counts(method: SSF, count: int) -> None:
    """Table 6, in millions with a classifier of 100: .11 .15 .22 .19 .21 .28 .25 .18 .18 .18."""
    assert trained("vit", method) == count


@pytest.mark.parametrize(
    "options",
    [{"scale": "none"}, {"shift": False}, {"scale": "scalar"}, {"stages": False}],
    ids=str,
)
@pytest.mark.parametrize("family", ["vit", "swin", "resnet", "convnext"])
def test_ablations_merge(family: str, options: dict) -> None:
    model = tiny(family).eval()
    x = images(model)
    tuned = lowtide.apply(model, SSF(**options)).eval()
    stir(tuned)
    expected = tuned(x)
    near(tuned.merge_and_unload().eval()(x), expected)


def test_other_starts() -> None:
    torch.manual_seed(1)
    for init, centre, most in (
        ("uniform", 1, 0.0347),
        ("trunc_normal", 1, 0.0401),
        ("random", 0, 1),
    ):
        state = lowtide.apply(tiny("vit"), SSF(init=init)).adapter_state()
        gammas = torch.cat([v.flatten() for k, v in state.items() if k.endswith("gamma")])
        assert abs(gammas.mean() - centre) < 0.002 and abs(gammas.std() - 0.02) < 0.003
        assert (gammas - centre).abs().max() < most

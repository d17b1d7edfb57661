"""A table tells the truth: its steps are the model's forward, its roles are what stands there."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from nets import FEW, TABLES, backward, from_timm, images, near, settle, stir, tiny, wake
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torchvision import models

import lowtide
from lowtide.core.method import METHODS
from lowtide.core.site import Layout, Role
from lowtide.errors import InputError, Unsupported
from lowtide.families import FAMILIES, Family, classifiers, family_of, measure, prepare
from lowtide.methods.bias import Bias
from lowtide.methods.lora import LoRA
from lowtide.methods.s2a import S2A
from lowtide.methods.ssf import SSF
from lowtide.versions import on_meta

ARCHITECTURES = {
    "vit_tiny_patch16_224": {},
    "vit_base_patch16_224": {"img_size": 64},
    "deit3_small_patch16_224": {"img_size": 96},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56},
    "vit_base_patch16_clip_224": {"img_size": 64},
    "vit_base_patch16_siglip_224": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {},
    "swinv2_tiny_window8_256": {},
    "swin_base_patch4_window12_384": {"img_size": 192},
    "convnext_atto": {},
    "convnext_tiny": {},
    "convnextv2_atto": {},
    "resnet18": {},
    "resnet50": {},
    "resnet50d": {},
    "resnext50_32x4d": {},
    "seresnet50": {},
    "eva02_tiny_patch14_224": {"img_size": 56},
    "vit_small_patch16_dinov3": {"img_size": 64},
    "vit_pe_core_tiny_patch16_384": {"img_size": 64},
    "beit_base_patch16_224": {"img_size": 64},
    "samvit_base_patch16": {"img_size": 64},
    "samvit_base_patch16_224": {"img_size": 64},
    "maxvit_nano_rw_256": {},
    "maxvit_tiny_tf_224": {},
    "coatnet_nano_rw_224": {},
    "efficientnet_b0": {},
    "mobilenetv2_050": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small": {},
    "regnety_002": {},
    "regnetx_002": {},
}
FIXED = {
    "maxvit_nano_rw_256",
    "maxvit_tiny_tf_224",
    "coatnet_nano_rw_224",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
}
"""Run at the size they were made for; the others run small."""
PARTIAL = {"eva02_tiny_patch14_224", "coatnet_nano_rw_224", "maxvit_nano_rw_256"}
"""Refuse methods that the smallest member of their family takes: SwiGLU widths, heads first."""
EXPECTED = {
    "vit": "vit",
    "deit": "vit",
    "swin_": "swin",
    "swinv2": "swin_v2",
    "convnext": "convnext",
    "eva": "eva",
    "vit_small_patch16_dinov3": "eva",
    "vit_pe": "eva",
    "beit": "beit",
    "maxvit": "maxvit",
    "coatnet": "maxvit",
    "efficientnet": "efficientnet",
    "mobilenet": "efficientnet",
    "regnet": "regnet",
    "samvit": "sam",
}


def composed(family: Family, model: nn.Module, x: Tensor) -> Tensor:
    context = family.context(model, x.shape[2:])
    x = family.stem(model, x)
    for path in family.chain(model):
        x = model.get_submodule(path)(x, **context.get(path, {}))
    (head,) = classifiers(model)
    x = model.forward_head(family.finish(model, x), pre_logits=True)
    return model.get_submodule(head)(x)


def same_answer(family: Family, model: nn.Module, x: Tensor) -> None:
    """The same operations in the same order: equal to the bit, in any precision."""
    with torch.no_grad():
        y = model.eval()(x)
        assert y.std(0).mean() > 0.001 * y.abs().mean(), "the backbone is asleep"
        torch.testing.assert_close(composed(family, model, x), y, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_steps_compose_to_the_forward(name: str) -> None:
    model = tiny(name)
    assert family_of(model) is TABLES[name]
    same_answer(TABLES[name], model, images(model))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_steps_compose_to_the_forward_of_real_architectures(name: str) -> None:
    model = from_timm(name, num_classes=FEW, **ARCHITECTURES[name])
    family = family_of(model)
    expected = max((s for s in EXPECTED if name.startswith(s)), key=len, default="")
    assert family.name == EXPECTED.get(expected, "resnet")
    x = images(model, batch=2)
    x = x if name in FIXED or "img_size" in ARCHITECTURES[name] else x[..., :96, :96]
    same_answer(family, settle(wake(model), x), x)


def fits(method: str, model: nn.Module) -> bool:
    """Whether a method finds what it needs."""
    prepare(model)
    try:
        return bool(list(METHODS[method]().edits(measure(model, family_of(model)))))
    except Unsupported:
        return False


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sites_cover_real_architectures(name: str) -> None:
    """On the meta device: no weight is drawn. Every third method is measured and guarded, another
    third on the next architecture."""
    with on_meta():
        model = from_timm(name, num_classes=FEW)
    sites = measure(model, family_of(model))
    assert {f"{s.path}.{p}".lstrip(".") for s in sites for p in s.params} == {
        n for n, _ in model.named_parameters()
    }
    blocks, qkv = sites.of(Role.BLOCK), sites.of(Role.QKV)
    assert len(blocks) > 6 and [s.depth for s in blocks] == list(range(len(blocks)))
    each = sum(s.depth == len(blocks) - 1 for s in qkv)  # MaxViT attends twice in a block
    attend = sorted({s.depth for s in qkv})  # CoAtNet only in its last stages
    assert [s.depth for s in qkv] == [d for d in attend for _ in range(each)]
    assert len(attend) in {0, len(blocks)} or name.startswith("coatnet")
    assert len(sites.of(Role.FC1)) == len(sites.of(Role.FC2))
    assert {s.path for s in sites.of(Role.HEAD)} == set(classifiers(model))
    loose = [s for s in sites.of(Role.OTHER) if type(model.get_submodule(s.path)) is nn.Linear]
    assert all(re.search(r"cpb_mlp|rel_pos|attn_pool|pre_logits", s.path) for s in loose)
    methods = sorted(METHODS.keys() - {"full", "linear"})  # these cannot fail to fit
    for method in methods[list(ARCHITECTURES).index(name) % 3 :: 3]:
        like = model if name in PARTIAL else tiny(family_of(model).name)
        if not fits(method, like):
            continue
        with on_meta():
            model = timm.create_model(name, num_classes=FEW)
        lowtide.apply(model, METHODS[method]())


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_sites_are_measured_facts(name: str) -> None:
    model = tiny(name)
    sites = measure(model, FAMILIES[name])
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for s in sites:

        def note(_: nn.Module, args: tuple[Tensor], y: Tensor, path: str = s.path) -> None:
            if args:
                seen.setdefault(path, (args[0], y))

        model.get_submodule(s.path).register_forward_hook(note)
    model(images(model, batch=1))
    for s in sites:
        if not s.in_shape:
            assert s.path not in seen
            continue
        module, (x, y) = model.get_submodule(s.path), seen[s.path]
        assert (s.in_shape, s.out_shape) == (x.shape, y.shape)
        assert s.params == tuple(n for n, _ in module.named_parameters(recurse=False))
        if isinstance(module, nn.Linear):
            assert (s.in_dim, s.dim) == (module.in_features, module.out_features)
        if isinstance(module, nn.Conv2d):
            assert (s.in_dim, s.dim) == (module.in_channels, module.out_channels)
            assert s.layout is Layout.FIRST and s.tokens == x[0, 0].numel()
        if s.role is Role.BLOCK:
            assert s.grid[0] * s.grid[1] + s.prefix == y.numel() // s.dim


def test_measuring_touches_nothing() -> None:
    model = tiny("resnet").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    measure(model, FAMILIES["resnet"])
    assert model.training and not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def swin_v2() -> nn.Module:
    return SwinTransformerV2(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4),
        num_classes=10, drop_path_rate=0.0,
    )  # fmt: skip


def beit() -> nn.Module:
    return Beit(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10,
        use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1,
    )  # fmt: skip


def eva() -> nn.Module:
    return Eva(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10,
        use_rot_pos_emb=True, qkv_fused=True,
    )  # fmt: skip


@pytest.mark.parametrize("build", [swin_v2, beit, eva])
def test_a_qkv_read_past_the_module_still_trains_what_is_put_there(build) -> None:
    """SwinV2, BEiT and EVA add q and v biases of their own to the fused projection."""
    model = wake(build().double()).eval()
    x = images(model)
    before = model(x)
    prepare(model)
    near(model(x), before)
    tuned = lowtide.apply(model, LoRA())
    backward(tuned, x)
    ups = [p for n, p in tuned.named_parameters() if "qkv.up" in n]
    assert len(ups) >= 2 and all(p.grad is not None and p.grad.abs().max() > 1e-9 for p in ups)
    stir(tuned)
    expected = tuned.eval()(x)
    assert (expected - before).abs().max() > 1e-3
    plain = build().double().eval()
    plain.load_state_dict(tuned.merge_and_unload().state_dict())
    near(plain(x), expected)


@pytest.mark.parametrize("build", [swin_v2, beit, eva])
@pytest.mark.parametrize("method", [Bias(), SSF()], ids=str)
def test_separate_biases_train_and_merge(build, method) -> None:
    model = wake(build().double())
    tuned = lowtide.apply(model, method).eval()
    if isinstance(method, Bias):
        assert any(k.endswith("/bias/q_bias") for k in tuned.adapter_state())
        assert not any("relative_position" in k for k in tuned.adapter_state())
    stir(tuned)
    x = images(model)
    expected = tuned(x)
    plain = build().double().eval()
    plain.load_state_dict(tuned.merge_and_unload().state_dict())
    near(plain(x), expected)


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4, padding_mode="reflect", padding=2),
        nn.GELU(),
        nn.Conv2d(8, 12, 3, stride=2, groups=4, dilation=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 16),
        nn.LayerNorm(16),
        nn.Linear(16, 10),
    )


def torchvision_resnet() -> nn.Module:
    return models.resnet18(num_classes=10)


@pytest.mark.parametrize("build", [sequential, torchvision_resnet])
@pytest.mark.parametrize("name", sorted({"full", "linear", "bias", "lora", "ssf"}))
def test_backbones_of_no_table_keep_the_methods_that_need_no_blocks(build, name: str) -> None:
    model = wake(build().double())
    model.pretrained_cfg = {"input_size": (3, 64, 64)}
    x = images(model)
    expected = {f"model.{n}" for n, _ in model.named_parameters()}
    tuned = lowtide.apply(model, METHODS[name]())
    backward(tuned.train(), x)
    got = {n for n, p in tuned.named_parameters() if p.grad is not None}
    if name == "full":
        assert got == expected
    elif name == "linear":
        assert len(got) == 2
    elif name == "bias":
        assert got == {n for n in expected if n.endswith(".bias")} | {
            f"model.{classifiers(model)[0]}.weight"
        }
    else:
        assert len(got) > 3
    stir(tuned)
    y = tuned.eval()(x)
    near(tuned.merge_and_unload().eval()(x), y)


@pytest.mark.parametrize("build", [sequential, torchvision_resnet])
def test_backbones_of_no_table_refuse_what_needs_blocks(build) -> None:
    with pytest.raises(Unsupported, match="blocks.*no table"):
        lowtide.apply(build(), S2A())


def test_a_backbone_without_classifier_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(InputError, match="classifier"):
        lowtide.apply(model, Bias())


def test_a_headless_backbone_gets_a_classifier() -> None:
    model = timm.create_model("resnet18", num_classes=0)
    tuned = lowtide.apply(model, Bias(), num_classes=FEW)
    assert tuned(images(model, batch=1)).shape == (1, FEW)


def test_a_wrong_image_size_is_refused_in_one_line() -> None:
    model = tiny("vit")
    model.patch_embed.img_size = (40, 40)
    with pytest.raises(InputError, match=r"does not run on a \(3, 40, 40\) image"):
        measure(model, FAMILIES["vit"])

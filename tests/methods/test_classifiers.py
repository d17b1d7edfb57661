"""Classifiers that are no plain linear map: all of them trains, is saved, loaded and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from nets import FEW, backward, from_timm, images, near, stir, tiny
from timm.models.metaformer import MetaFormer
from torch import nn

import lowtide
from lowtide.core.graft import Graft
from lowtide.core.method import Swap
from lowtide.errors import InputError, UnknownName
from lowtide.families import classifiers
from lowtide.methods.linear import Linear
from lowtide.methods.lora import LoRA
from lowtide.methods.ssf import SSF

SMALL: dict[str, dict[str, Any]] = {
    "repvit_m0_9": {},
    "levit_128s": {"img_size": 64},
    "efficientvit_m0": {"img_size": 64},
    "efficientvim_m1_dist": {},
    "crossvit_tiny_240": {"depth": ((1, 1, 0),) * 3},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},
    "samvit_base_patch16_224": {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 2},
    "dla46_c": {},
    "caformer": {},
}


def small(name: str, **options: Any) -> nn.Module:
    """A seeded member, in eval mode."""
    torch.manual_seed(3)
    if name == "caformer":
        heads = {"use_mlp_head": True, "num_classes": 10, **options}
        model: nn.Module = MetaFormer(depths=(1, 1), dims=(16, 32), **heads)
    else:
        model = from_timm(name, **{"num_classes": 10, **SMALL[name], **options})
    if not hasattr(getattr(model, "patch_embed", None), "img_size"):
        side = 240 if name.startswith("crossvit") else 64
        cfg = getattr(model, "pretrained_cfg", None) or {}
        model.pretrained_cfg = {**cfg, "input_size": (3, side, side)}
    return model.eval()  # in float64 a depthwise convolution takes seconds


@pytest.mark.parametrize("classes", [None, FEW])
@pytest.mark.parametrize("name", SMALL)
def test_it_trains_round_trips_and_merges(name: str, classes: int | None, tmp_path: Path) -> None:
    model = small(name)
    x = images(model)
    tuned = lowtide.apply(model, Linear(), num_classes=classes).eval()
    heads = classifiers(model)
    whole = {n for n, _ in model.named_parameters() if n.startswith(heads)}
    assert tuned.num_classes == (classes or 10)
    backward(tuned, x)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == whole
    stir(tuned)
    y = tuned(x)
    assert y.shape == (3, classes or 10)
    tuned.save_pretrained(tmp_path)
    near(lowtide.load(small(name), tmp_path)(x), y, 1e-6)
    plain = small(name, num_classes=classes or 10)
    plain.load_state_dict(tuned.merge_and_unload().state_dict())
    near(plain(x), y, 1e-6)


@pytest.mark.parametrize(
    "name, whole",
    [
        ("levit_128s", ("head", "head_dist")),
        ("efficientvit_m0", ("head",)),
        ("crossvit_tiny_240", ("head.0", "head.1")),
        ("caformer", ("head.fc",)),
        ("samvit_base_patch16_224", ("head.fc",)),
    ],
)
def test_the_classifier_is_what_timm_makes_anew(name: str, whole: tuple[str, ...]) -> None:
    """EfficientViT's `get_classifier` tells the linear map alone, without its norm."""
    model = small(name)
    before = dict(model.named_modules())
    assert classifiers(model) == whole
    model.reset_classifier(3)
    anew = {p for p, m in model.named_modules() if before.get(p) is not m}
    assert all(p in whole or p.startswith(tuple(f"{w}." for w in whole)) or
               p == whole[0].rpartition(".")[0] for p in anew)  # fmt: skip
    assert classifiers(model) == whole


@pytest.mark.parametrize("name", ["levit_128s", "caformer", "crossvit_tiny_240"])
def test_adapters_with_other_classes_share_a_backbone(name: str) -> None:
    model = small(name)
    x = images(model)
    tuned = lowtide.apply(model, Linear(), name="a").eval()
    tuned.add_adapter("b", Linear(), num_classes=3)
    before = tuned(x)
    tuned.set_adapter("b")
    assert tuned(x).shape == (3, 3) and tuned.num_classes == 3
    tuned.set_adapter("a")
    near(tuned(x), before, 1e-6)


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_a_headless_backbone_gets_a_classifier(family: str, tmp_path: Path) -> None:
    def headless() -> nn.Module:
        model = tiny(family).eval()
        model.reset_classifier(0)
        return model

    with pytest.raises(InputError, match="no classifier; give num_classes"):
        lowtide.apply(headless(), Linear())
    tuned = lowtide.apply(headless(), LoRA(), num_classes=FEW).eval()
    stir(tuned)
    x = images(tuned.backbone)
    tuned.save_pretrained(tmp_path)
    for model in (headless(), tiny(family)):
        near(lowtide.load(model, tmp_path)(x), tuned(x))


@pytest.mark.parametrize("anew", ["apply", "add_adapter"])
@pytest.mark.parametrize("init", ["trunc_normal", "zero", "own"])
def test_a_new_classifier_starts_as_told(init: Any, anew: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    if anew == "apply":
        tuned = lowtide.apply(model, Linear(), num_classes=400, head_init=init)
    else:
        tuned = lowtide.apply(model, Linear(), name="a")
        tuned.add_adapter("b", Linear(), num_classes=400, head_init=init)
        tuned.set_adapter("b")
    weight, bias = tuned.backbone.head.weight.detach(), tuned.backbone.head.bias.detach()
    width = {"trunc_normal": 0.02, "zero": 0.0, "own": (1 / 3 / weight.shape[1]) ** 0.5}[init]
    assert abs(weight.std() - width) <= 0.02 * width
    assert bias.any() == (init == "own")


def test_a_hidden_layer_is_not_started_at_zero() -> None:
    tuned = lowtide.apply(small("caformer"), Linear(), num_classes=FEW, head_init="zero")
    head = tuned.backbone.head.fc
    assert head.fc1.weight.any() and not head.fc2.weight.any() and not head.fc2.bias.any()


def test_bad_heads_are_refused_at_the_door() -> None:
    for classes in (0, -3):
        with pytest.raises(
            InputError, match=f"num_classes must be a whole number from 1 .*not {classes}"
        ):
            lowtide.apply(tiny("vit"), Linear(), num_classes=classes)
    with pytest.raises(UnknownName, match="head_init 'zeros': did you mean zero"):
        lowtide.apply(tiny("vit"), Linear(), num_classes=FEW, head_init="zeros")


class Peeking(nn.Module):
    """A backbone that computes with a weight past the module, in what runs second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)
        self.pretrained_cfg = {"input_size": (3, 16, 16)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x.to(self.inner.weight.device, self.inner.weight.dtype)))
        return self.fc(torch.conv2d(self.inner(x), self.inner.weight).mean((2, 3)))


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_whatever_goes_wrong_the_backbone_is_as_it_was(error: type[BaseException]) -> None:
    model = Peeking()
    model.norm.eval()
    x = torch.randn(2, 3, 16, 16)
    answer, before = model(x), dict(model.named_modules())
    flags = [m.training for m in model.modules()]
    state = {n: p.clone() for n, p in model.state_dict().items()}

    class Failing(SSF):
        def edits(self, sites):
            def fail(base: nn.Module) -> Graft:
                raise error

            yield from super().edits(sites)
            yield Swap(sites.of("linear", "conv")[-1], fail)

    with pytest.raises(error):
        lowtide.apply(model, Failing())
    assert dict(model.named_modules()) == before
    assert flags == [m.training for m in model.modules()]
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(x), answer)

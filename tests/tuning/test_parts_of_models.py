"""Detectors, segmenters and feature extractors are tuned by their backbone; the rest trains."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds_of_models import MODELS, SIDE, loss
from nets import near, stir, wake
from torch import Tensor, nn

import lowtide
from lowtide import METHODS, compress
from lowtide.core.outputs import tensors
from lowtide.errors import InputError
from lowtide.tuning.left_out import LeftOutWarning
from lowtide.tuning.tuned import Tuned

pytestmark = pytest.mark.filterwarnings(f"ignore::{LeftOutWarning.__module__}.LeftOutWarning")

EACH_METHOD_ON = ("mask_rcnn", "segformer", "rcnn_swin")


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return wake(MODELS[kind][2]()).eval()


def images(count: int = 2) -> Tensor:
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")


def features(backbone: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return tensors(backbone(images()))


def check(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-4) -> None:
    """Hold feature maps against each other, each on its own scale."""
    assert a and len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        if y.numel():  # segmentation_models_pytorch fills up with maps without channels
            near(x / y.abs().max(), y / y.abs().max(), tolerance)


def tuned_once(kind: str, method: str, **options: Any) -> Tuned:
    given = {"reduction_bias": False} if method == "rlrr" else {}  # which some map cannot absorb
    tuned = lowtide.apply(made(kind), METHODS[method](**given), **options)
    stir(tuned)
    return tuned.eval()


@pytest.mark.parametrize("kind", MODELS)
def test_the_backbone_is_found_and_its_table_with_it(kind: str) -> None:
    path, family, _ = MODELS[kind]
    tuned = lowtide.apply(made(kind), METHODS["ssf"]())
    assert (tuned.backbone_path, tuned.family.name) == (path, family)
    assert tuned.backbone is tuned.model.get_submodule(path)
    inside = f"{path}." if path else ""
    trained = {n for n, p in tuned.model.named_parameters() if p.requires_grad}
    assert trained >= {n for n, _ in tuned.model.named_parameters() if not n.startswith(inside)}
    assert {n.rpartition(".")[2] for n in trained if n.startswith(inside)} == {"gamma", "beta"}


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, "ssf") for kind in MODELS),
        *((kind, m) for kind in EACH_METHOD_ON for m in ("lora", "rlrr", "full")),
        ("rcnn_swin", "fact_tt"),
        ("rcnn_swin", "bias"),
        ("smp_timm", "fact_tk"),
        ("smp_padded", "lora"),
    ],
)
def test_it_trains_saves_loads_and_merges(kind: str, method: str, tmp_path: Path) -> None:
    path, plain = MODELS[kind][0], made(kind)
    tuned = tuned_once(kind, method)
    tuned.train()
    loss(tuned, kind, images()).backward()
    grafted = [n for n, p in tuned.model.named_parameters() if p.requires_grad and p.grad is None]
    inside = [n for n in grafted if n.startswith(f"{path}." if path else "")]
    assert not inside, "of the backbone all that trains gets a gradient"
    tuned.eval()
    changed = features(tuned.backbone)
    tuned.save_pretrained(tmp_path)
    loaded = lowtide.load(made(kind), tmp_path)
    assert loaded.backbone_path == path
    for key, value in tuned.adapter_state().items():
        assert torch.equal(loaded.adapter_state()[key], value)
    if method != "full":
        with tuned.disable_adapter():
            state = plain.state_dict()
            assert all(torch.equal(v, state[k]) for k, v in tuned.model.state_dict().items())
    merged = tuned.merge_and_unload()
    assert list(merged.state_dict()) == list(plain.state_dict())
    check(features(merged.get_submodule(path)), changed)
    again = loaded.merge_and_unload().state_dict()
    assert all(torch.equal(v, again[k]) for k, v in merged.state_dict().items())


@pytest.mark.parametrize("kind", ["mask_rcnn", "segformer", "timm_vit"])
def test_outputs_start_unchanged_and_compression_changes_none(kind: str) -> None:
    before = answers(made(kind))
    tuned = lowtide.apply(made(kind), METHODS["lora"]()).eval()
    for a, b in zip(answers(tuned), before, strict=True):
        near(a, b, 1e-5)
    stir(tuned)
    torch.manual_seed(2)
    plain = loss(tuned.train(), kind, images())
    compress(tuned, "tight")
    torch.manual_seed(2)
    packed = loss(tuned, kind, images())
    assert torch.equal(plain, packed)
    packed.backward()
    assert all(p.grad.isfinite().all() for p in tuned.parameters() if p.grad is not None)


def answers(model: nn.Module) -> list[Tensor]:
    """What a detector finds, a segmenter draws, an extractor gives."""
    with torch.no_grad():
        found = (
            model(list(images()))
            if "RCNN" in str(type(model)) or detects(model)
            else model(images())
        )
    return tensors(found)


def detects(model: Any) -> bool:
    return "RCNN" in type(getattr(model, "model", model)).__name__


def test_the_rest_is_frozen_if_told_and_then_hashed(tmp_path: Path) -> None:
    tuned = tuned_once("mask_rcnn", "lora", head="frozen")
    trained = {n for n, p in tuned.named_parameters() if p.requires_grad}
    assert trained and all("backbone.body" in n for n in trained)
    tuned.train()
    assert not any(isinstance(m, nn.BatchNorm2d) and m.training for m in tuned.modules())
    tuned.save_pretrained(tmp_path)
    assert lowtide.load(made("mask_rcnn"), tmp_path).head == "frozen"
    other = made("mask_rcnn")
    nn.init.normal_(other.get_submodule("rpn.head.cls_logits").weight)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(InputError, match="weights"):
        lowtide.load(other, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    with pytest.raises(InputError, match="head='frozen', and this model was given .* head='train'"):
        lowtide.apply(made("mask_rcnn"), METHODS["lora"]()).load_adapter(tmp_path, "b")


def test_other_heads_are_no_other_backbone(tmp_path: Path) -> None:
    """The rest comes with the adapter, so only the backbone's weights must be the recorded ones."""
    tuned = tuned_once("segformer", "ssf")
    tuned.save_pretrained(tmp_path)
    fresh = made("segformer")
    nn.init.normal_(fresh.get_submodule("decode_head.classifier").weight)
    loaded = lowtide.load(fresh, tmp_path)
    for a, b in zip(answers(loaded), answers(tuned), strict=True):
        assert torch.equal(a, b)


def test_several_adapters_have_heads_of_their_own(tmp_path: Path) -> None:
    tuned = tuned_once("segformer", "lora")
    first = answers(tuned)
    tuned.save_pretrained(tmp_path)
    tuned.add_adapter("second", METHODS["ssf"]())
    tuned.set_adapter("second")
    stir(tuned)
    second = answers(tuned.eval())
    tuned.load_adapter(tmp_path, "third")
    third = answers(tuned.eval())
    tuned.set_adapter("default")
    assert not torch.equal(first[0], second[0])
    assert torch.equal(answers(tuned.eval())[0], first[0])
    assert torch.equal(third[0], first[0])
    with tuned.disable_adapter():
        # The head is a copy elsewhere in memory, which some processors' products round by.
        torch.testing.assert_close(answers(tuned)[0], answers(made("segformer"))[0])


def test_feature_maps_read_by_hooks_are_those_behind_the_graft() -> None:
    """timm's FeatureHookNet reads maps off modules, which a method may stand around."""
    torch.manual_seed(0)
    model = wake(MODELS["timm_resnet"][2]())
    seen: list[Tensor] = []
    model.get_submodule("layer1.0.bn2").register_forward_hook(lambda m, x, y: seen.append(y))
    plain = copy.deepcopy(model)
    tuned = lowtide.apply(model, METHODS["ssf"](init="paper"))
    stir(tuned)
    tuned.eval()(images())
    behind = seen[-1]
    gamma = tuned.model.get_submodule("layer1.0.bn2").get_parameter("gamma")
    assert behind.grad_fn is not None and gamma.requires_grad
    with tuned.disable_adapter():
        tuned(images())
        without = seen[-1]
    merged = tuned.merge_and_unload()
    merged(images())
    near(seen[-1], behind, 1e-4)
    assert (without - behind).abs().max() > 0.1
    assert plain.state_dict().keys() == merged.state_dict().keys()


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (
            "mask_rcnn",
            {"backbone": "backbone.bodi"},
            "unknown backbone .*did you mean backbone.body",
        ),
        ("mask_rcnn", {"backbone": "roi_heads.box_roi_pool"}, "has no parameters"),
        ("mask_rcnn", {"head": "thaw"}, "unknown head 'thaw'"),
        ("mask_rcnn", {"num_classes": 7}, "build the model with heads for 7 classes"),
        ("mask_rcnn", {"backbone": "rpn"}, "does not run on a"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_lost(
    given: str, options: Any, message: str
) -> None:
    model = made(given)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=message) as error:
        lowtide.apply(model, METHODS["lora"](), **options)
    assert "\n" not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for n, p in model.named_parameters())


def test_two_extractors_are_not_chosen_between() -> None:
    pair = nn.ModuleDict({"a": MODELS["timm_vit"][2](), "b": MODELS["timm_vit"][2]()})
    with pytest.raises(InputError, match="2 feature extractors .*backbone='a'"):
        lowtide.apply(pair, METHODS["lora"]())


def test_blocks_of_a_part_are_recomputed_and_gradients_stay() -> None:
    tuned = tuned_once("rcnn_swin", "lora").train()

    def gradients() -> list[Tensor]:
        tuned.zero_grad()
        torch.manual_seed(3)
        loss(tuned, "rcnn_swin", images()).backward()
        return [p.grad.clone() for p in tuned.parameters() if p.grad is not None]

    plain = gradients()
    tuned.checkpointing = True
    assert tuned.checkpointing == 4
    for a, b in zip(gradients(), plain, strict=True):
        near(a, b, 1e-6)


def test_frozen_weights_in_few_bits() -> None:
    tuned = tuned_once("mask_rcnn", "lora")
    before = features(tuned.backbone)
    lowtide.set_frozen_dtype(tuned, "int8")
    check(features(tuned.backbone), before, 0.05)
    assert tuned.model.get_submodule("rpn.head.cls_logits").weight.dtype is torch.float32

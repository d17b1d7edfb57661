"""transformers' image classifiers: any of them, of any size, with another number of classes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from nets import FEW, stir, wake
from steps import real_step

from lowtide import METHODS, Role, StepConfig, apply, load, plan
from lowtide.families import image_shape

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
OWN = 5
VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
CONVNEXT = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}
MODELS = {
    "ViT": ("ViTForImageClassification", "ViTConfig", VIT, 32),
    "DINOv2": ("Dinov2ForImageClassification", "Dinov2Config", VIT, 32),
    "DeiT": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", VIT, 32),
    "BEiT": ("BeitForImageClassification", "BeitConfig", VIT, 32),
    "Swin": ("SwinForImageClassification", "SwinConfig", SWIN, 64),
    "ConvNeXt": ("ConvNextForImageClassification", "ConvNextConfig", CONVNEXT, 224),
}


def made(name):
    kind, config, options, side = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config)(**options, num_labels=OWN)
    model = wake(getattr(transformers, kind)(config)).eval()
    assert image_shape(model) == (3, side, side)
    return model, torch.randn(2, 3, side, side)


@pytest.mark.parametrize("name", MODELS)
def test_lora_trains_saves_loads_and_merges(tmp_path, name):
    model, x = made(name)
    untouched = copy.deepcopy(model)
    tuned = apply(model, METHODS["lora"](parts="qv"), num_classes=FEW)
    stir(tuned)
    adapted = {path.rpartition(".")[2] for path, *_ in tuned.adapters["default"].grafts}
    expected = ({"q_proj", "v_proj"}, {"query", "value"}) if name != "ConvNeXt" else ()
    assert not expected or adapted in expected
    y = tuned.eval()(pixel_values=x)
    assert y.logits.shape == (2, FEW)
    if name != "DeiT":  # which trains without a teacher only by its other class
        loss = tuned(pixel_values=x, labels=torch.tensor([0, FEW - 1])).loss
        assert torch.allclose(loss, -y.logits.log_softmax(1)[[0, 1], [0, FEW - 1]].mean())
    tuned.save_pretrained(tmp_path)
    back = load(copy.deepcopy(untouched), tmp_path)
    assert torch.allclose(back(x).logits, y.logits, atol=1e-5)
    with tuned.disable_adapter():
        assert torch.allclose(tuned(x).logits, untouched(x).logits, atol=1e-5)
        assert tuned.backbone.config.num_labels == OWN
    assert tuned.backbone.config.num_labels == FEW
    assert (tuned.merge_and_unload()(x).logits - y.logits).abs().max() < 1e-4


@pytest.mark.parametrize("policy", ["exact", "tight"])
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_is_the_step_on_its_logits(name, policy):
    model, step = made(name)[0], StepConfig(batch_size=2, policy=policy)
    tuned, real = real_step(model, METHODS["lora"](), step)
    planned = plan(model, METHODS["lora"](), step=step)
    assert planned.peak_bytes == real.peak_bytes and planned.parts == real.parts
    assert (planned.trainable_parameters, planned.total_parameters) == tuned.trainable_counts()


@pytest.mark.parametrize("parts", ["k", "qkv"])
def test_parts_are_those_of_separate_maps(parts):
    tuned = apply(made("ViT")[0], METHODS["lora"](parts=parts))
    sites = {s.path: s.part for s in tuned.sites}
    grafted = [sites[path] for path, *_ in tuned.adapters["default"].grafts]
    assert sorted(grafted) == sorted(parts * VIT["num_hidden_layers"])


def test_an_adapter_from_before_separate_maps_were_known_still_loads(tmp_path):
    """LoRA's default was every linear map there, and its config says no roles."""
    model, x = made("ViT")
    old = METHODS["lora"](roles=(Role.FC1, Role.FC2, Role.LINEAR))
    tuned = apply(copy.deepcopy(model), old)
    stir(tuned)
    tuned.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    content = json.loads(path.read_text())
    content["methods"][0]["roles"] = []
    path.write_text(json.dumps(content))
    assert torch.allclose(load(model, tmp_path)(x).logits, tuned.eval()(x).logits, atol=1e-5)

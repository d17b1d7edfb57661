"""The bundled backbone: found by timm, complete, small, and worth more than its random start."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from timm.data import resolve_model_data_config
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

import lowtide.zoo

NAME = "vit_micro_patch4_32"
FILE = Path(lowtide.zoo.__file__).with_name(f"{NAME}.safetensors")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every attempt to reach the network fail."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def stored() -> dict[str, Tensor]:
    with safe_open(FILE, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def test_timm_knows_it_with_weights() -> None:
    assert timm.is_model(NAME)
    assert timm.is_model_pretrained(NAME)


def test_the_file_is_small_fp16_and_finite() -> None:
    assert FILE.stat().st_size <= 6_000_000
    for key, value in stored().items():
        assert value.dtype == torch.float16, key
        assert value.isfinite().all(), key


@pytest.mark.usefixtures("offline")
def test_timm_loads_every_weight_of_the_file() -> None:
    model = timm.create_model(NAME, pretrained=True)
    assert type(model) is VisionTransformer
    state, weights = model.state_dict(), stored()
    assert state.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(state[key], value.float(), rtol=0, atol=0)


@pytest.mark.usefixtures("offline")
def test_another_number_of_classes_keeps_the_backbone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = timm.create_model(NAME, pretrained=True, num_classes=10)
    assert not caplog.records
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    state, weights = model.state_dict(), stored()
    for key in weights.keys() - {"head.weight", "head.bias"}:
        torch.testing.assert_close(state[key], weights[key].float(), rtol=0, atol=0)


def test_outputs_repeat_and_separate_images() -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 3, 32, 32)
    first, second = (timm.create_model(NAME, pretrained=True).eval()(images) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first.shape == (3, 100)
    assert torch.pdist(first).min() > 0.1


def test_preprocessing_is_on_record() -> None:
    config = resolve_model_data_config(timm.create_model(NAME))
    assert config["input_size"] == (3, 32, 32)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert (config["interpolation"], config["crop_pct"]) == ("bicubic", 1.0)


@torch.inference_mode()
def probe(model: nn.Module) -> float:
    """Logistic regression on frozen features: 10 of each digit to fit, 500 to test."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1
    images = F.interpolate(images[:600], size=32, mode="bicubic").expand(-1, 3, -1, -1)
    x = model.eval().forward_head(model.forward_features(images), pre_logits=True).numpy()
    y = digits.target[:600]
    x = StandardScaler().fit(x[:100]).transform(x)
    classifier = LogisticRegression(C=0.1, max_iter=1000).fit(x[:100], y[:100])
    return float(classifier.score(x[100:], y[100:]))


def test_linear_probe_on_digits_beats_random_weights() -> None:
    torch.manual_seed(0)
    untrained = probe(timm.create_model(NAME))
    trained = probe(timm.create_model(NAME, pretrained=True))
    assert trained > untrained + 0.1, (trained, untrained)


def test_another_image_size_resamples_positions_as_timm_does():
    own = timm.create_model("vit_micro_patch4_32", pretrained=True)
    other = timm.create_model("vit_micro_patch4_32", pretrained=True, img_size=48)
    expected = resample_abs_pos_embed(own.pos_embed, (12, 12), (8, 8), num_prefix_tokens=0)
    assert other.pos_embed.shape == (1, 144, 192)
    assert torch.allclose(other.pos_embed, expected, atol=2e-3)  # the file holds two bytes each
    assert torch.equal(other.blocks[3].mlp.fc1.weight, own.blocks[3].mlp.fc1.weight)

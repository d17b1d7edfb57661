"""RT-DETRv2, a detector that predicts a set: tuned, compressed, trained, scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide
from lowtide import METHODS, POLICIES, Meter, compress
from lowtide.dense.scores import ObjectScore
from lowtide.tuning.left_out import LeftOutWarning

hf = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{LeftOutWarning.__module__}.LeftOutWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SIDE, CLASSES = 64, ("square", "disc")
BOXES = torch.tensor([[0.3, 0.3, 0.4, 0.4], [0.7, 0.6, 0.3, 0.5]])
"""Centre, width and height in shares of the image, as DETR's kind takes them."""


def model() -> nn.Module:
    torch.manual_seed(0)
    backbone = hf.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = hf.RTDetrV2Config(
        backbone_config=backbone,
        encoder_in_channels=[12, 16, 20],
        encoder_hidden_dim=16,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        num_queries=10,
        num_denoising=0,
        id2label=dict(enumerate(CLASSES)),
    )
    return hf.RTDetrV2ForObjectDetection(config)


def images() -> Tensor:
    pixels = torch.zeros(2, 3, SIDE, SIDE)
    for x, y, w, h in (BOXES * SIDE).round().int().tolist():
        pixels[:, :, y - h // 2 : y + h // 2, x - w // 2 : x + w // 2] = 1
    return pixels


def loss(made: Any) -> Tensor:
    labels = [{"class_labels": torch.tensor([0, 1]), "boxes": BOXES} for _ in range(2)]
    total: Tensor = made(pixel_values=images(), labels=labels).loss
    return total


@pytest.mark.parametrize("method", ["ssf", "lora"])
def test_it_is_found_tuned_and_learns_compressed(method: str) -> None:
    made = lowtide.apply(model(), METHODS[method]())
    assert made.backbone_path == "model.backbone.model"
    compress(made, POLICIES["tight"]())
    trained = [p for p in made.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 2e-3)
    losses = []
    for _ in range(12):
        value = loss(made)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in made.backbone.parameters())


def test_compressed_it_loses_the_same_and_keeps_less() -> None:
    kept = {}
    for policy in ("exact", "tight"):
        made = compress(lowtide.apply(model(), METHODS["ssf"]()).train(), POLICIES[policy]())
        torch.manual_seed(1)
        meter = Meter(made)
        with meter:
            alive = loss(made)
            kept[policy] = (alive.item(), meter.now.parts["saved"])
            del alive
    assert kept["tight"][0] == kept["exact"][0]
    assert kept["tight"][1] < 0.6 * kept["exact"][1]


def test_its_answers_are_scored_as_any_detectors() -> None:
    made = lowtide.apply(model(), METHODS["ssf"]()).eval()
    score = ObjectScore(CLASSES, masks=False)
    with torch.no_grad():
        answer = made(pixel_values=images())
    shares, labels = answer.logits.sigmoid().max(-1)
    for i in range(2):
        found = {"boxes": corners(answer.pred_boxes[i]), "scores": shares[i], "labels": labels[i]}
        score.update(found, {"boxes": corners(BOXES), "labels": torch.tensor([0, 1])})
        perfect = {"boxes": corners(BOXES), "scores": torch.ones(2)}
    assert 0 <= (score.compute().main or 0) < 1
    score = ObjectScore(CLASSES, masks=False)
    truth = {"boxes": corners(BOXES), "labels": torch.tensor([0, 1])}
    score.update({**perfect, "labels": truth["labels"]}, truth)
    assert score.compute().main == pytest.approx(1)


def corners(boxes: Tensor) -> Tensor:
    centre, sides = boxes[:, :2] * SIDE, boxes[:, 2:] * SIDE
    return torch.cat([centre - sides / 2, centre + sides / 2], 1)

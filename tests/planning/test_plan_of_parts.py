"""Plans of detectors, segmenters and extractors, held against steps that really run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kinds_of_models import MODELS, SIDE, loss
from torch import Tensor, nn

from lowtide import METHODS, Footprint, InputError, Plan, StepConfig, apply, footprint, plan
from lowtide.families import meta_copy
from lowtide.planning.simulate import set_up_step
from lowtide.planning.step import make_optimizer, training_step

SEGMENTERS = ("fcn", "smp_timm", "segformer", "uper_net")


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[kind][2]()


def real(model: nn.Module, step: StepConfig, batch: list[Any], run: Any) -> Footprint:
    tuned = set_up_step(apply(copy.deepcopy(model), METHODS["lora"]()), step).train()
    optimizer = make_optimizer(tuned, step.opt)
    return footprint(lambda: training_step(tuned, optimizer, batch, loss=run), tuned, optimizer)


def pixel_loss(model: Any, images: Tensor, labels: Tensor) -> Tensor:
    if hasattr(model.model, "base_model"):
        return model(pixel_values=images, labels=labels).loss
    output = model(images)
    return F.cross_entropy(output if isinstance(output, Tensor) else output["out"], labels)


@pytest.mark.parametrize("policy", ["exact", "tight"])
@pytest.mark.parametrize("kind", SEGMENTERS)
def test_a_segmenters_plan_equals_the_real_step(kind: str, policy: str) -> None:
    model, step = made(kind), StepConfig(batch_size=4, policy=policy, accumulate=2)
    planned = plan(model, METHODS["lora"](), step=step, image_size=SIDE)
    images, labels = torch.rand(4, 3, SIDE, SIDE), torch.ones(4, SIDE, SIDE, dtype=torch.long)
    batch = list(zip(images.tensor_split(2), labels.tensor_split(2), strict=True))
    measured = real(model, step, batch, pixel_loss)
    assert planned.parts == measured.parts
    assert any(f"{SIDE} x {SIDE}" in note for note in planned.notes)


def test_a_norm_over_one_value_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="one value per channel"):
        plan(made("uper_net"), METHODS["lora"](), step=StepConfig(batch_size=1), image_size=SIDE)


def detector_step(boxes: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images with content, and boxes in other places than a plan's."""
    images, targets = [], []
    for _ in range(2):
        corner = 4 + 20 * torch.rand(boxes, 2)
        around = torch.cat([corner, corner + 8 + 24 * torch.rand(boxes, 2)], 1)
        masks = (torch.rand(boxes, SIDE, SIDE) > 0.5).to(torch.uint8)
        coarse = torch.rand(1, 3, 4, 4)
        images.append(F.interpolate(coarse, SIDE, mode="bicubic")[0])
        labels = torch.full((boxes,), 2)
        targets.append({"boxes": around, "labels": labels, "masks": masks})
    return images, targets


def summed(model: nn.Module, images: Any, targets: Any) -> Tensor:
    return torch.stack(list(model(images, targets).values())).sum()


def test_a_detectors_plan_is_a_step_with_as_many_boxes_as_it_takes() -> None:
    """What it looks into is bounded by its sampler, and no image of ours takes more than that."""
    model, step = made("mask_rcnn"), StepConfig(batch_size=2)
    model.roi_heads.fg_bg_sampler.batch_size_per_image = 64
    planned = plan(model, METHODS["lora"](), step=step)
    assert any("with 16 boxes each" in note for note in planned.notes)
    assert any("ran on the CPU" in note for note in planned.notes)
    full = real(model, step, [detector_step(16)], summed)
    assert abs(planned.peak_bytes / full.peak_bytes - 1) < 0.05
    few = real(model, step, [detector_step(1)], summed)
    assert few.peak_bytes < 1.01 * planned.peak_bytes


@pytest.mark.parametrize("kind", ["retina_net", "rt_detr"])
def test_detectors_that_look_everywhere_are_planned_closely(kind: str) -> None:
    model, step = made(kind), StepConfig(batch_size=2)
    planned = plan(model, METHODS["lora"](), step=step, image_size=SIDE, boxes=1)
    images = torch.rand(2, 3, SIDE, SIDE)
    measured = real(model, step, [(images, [0, 0])], lambda m, x, _: loss(m, kind, x))
    assert abs(planned.peak_bytes / measured.peak_bytes - 1) < 0.02


def test_a_detector_without_weights_is_planned_with_random_ones() -> None:
    step = StepConfig(batch_size=1)
    model = made("rcnn_swin")
    planned = plan(meta_copy(model), METHODS["lora"](), step=step)
    assert abs(planned.peak_bytes / plan(model, METHODS["lora"](), step=step).peak_bytes - 1) < 0.1


class Pixels(nn.Module):
    """A user's own net: nothing says what it is for."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.head = MODELS["timm_resnet"][2](), nn.Conv2d(512, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x)[-1])


def own_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def chosen_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Looks at numbers: no simulation can."""
    scores = model(images).flatten(1)
    return scores[scores > 0].sum()


def two(count: int) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 3, SIDE, SIDE), torch.zeros(count, 2, 2, dtype=torch.long)


def test_examples_and_a_loss_plan_any_model() -> None:
    model, step, method = Pixels(), StepConfig(batch_size=2), METHODS["lora"]()
    with pytest.raises(InputError, match="how Pixels is trained: give examples="):
        plan(model, method, step=step)
    with pytest.raises(InputError, match="go together"):
        plan(model, method, step=step, loss=own_loss)
    planned = plan(model, method, step=step, examples=two, loss=own_loss)
    assert planned.parts == real(model, step, [two(2)], own_loss).parts
    assert not any("CPU" in note for note in planned.notes)
    looked: Plan = plan(model, method, step=step, examples=two, loss=chosen_loss)
    assert any("CPU" in note for note in looked.notes)


def test_an_extractor_is_planned_by_its_feature_maps() -> None:
    model, step = made("timm_swin"), StepConfig(batch_size=2)
    planned = plan(model, METHODS["lora"](), step=step)
    batch = [(torch.rand(2, 3, SIDE, SIDE), None)]
    run = lambda m, x, _: torch.stack([y.mean() for y in m(x)]).sum()  # noqa: E731
    assert planned.parts == real(model, step, batch, run).parts


def test_a_size_that_would_not_be_used_is_refused() -> None:
    classifier = MODELS["timm_headless"][2]()
    classifier.reset_classifier(3)
    with pytest.raises(InputError, match="built for: image_size is for"):
        plan(classifier, METHODS["lora"](), image_size=SIDE)
    with pytest.raises(InputError, match="expected one side"):
        plan("vit_tiny_patch16_224", METHODS["lora"](), image_size=(32, 64))

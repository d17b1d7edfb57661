"""The batch and the loss on which a training step is planned, where a model is no classifier.

Only sizes and counts matter to the memory of most models: classes of pixels may all be 0. A
detector chooses by its own weights which boxes it looks into, so its step is rehearsed on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.outputs import tensors
from ..core.wrapped import plain_kind
from ..errors import InputError
from ..families import image_shape
from .loss import Loss

Examples = Callable[[int], tuple[Any, Any]]
"""From a number of images to that many of them, and their targets."""
BOXES = 8
"""Objects in each image of a detector that takes any number of them."""
SIDES = (4, 3)
"""Width and height of the images a detector is planned on, where nothing else is said."""


@dataclass(frozen=True)
class Trial:
    """A batch and a loss.

    Attributes:
        examples: Makes a micro-batch.
        loss: Mean training loss of a model on one.
        said: What a plan notes of the batch.
        looks: Whether the model reads numbers of its own to decide what it computes.
    """

    examples: Examples
    loss: Loss
    said: str
    looks: bool = False


def trial_of(
    model: Any, backbone: nn.Module, size: tuple[int, int] | None, boxes: int | None
) -> Trial:
    """Find the batch and the loss of a model whose library says what it is for.

    Args:
        model: The model; its backbone is a part of it.
        backbone: That part.
        size: Height and width of the images; by default what the model is made for.
        boxes: Objects in each image, for a detector; by default as many as an R-CNN looks into at
            most, and 8 for others.

    Returns:
        The trial.

    Raises:
        InputError: Nothing tells what its loss is.
    """
    name, module = plain_kind(model).__name__, plain_kind(model).__module__
    own = size or image_shape(backbone)[1:]
    if module.startswith("torchvision.models.detection"):
        return _detection(model, size or _resized(model), boxes)
    if name.endswith("ForObjectDetection"):
        return _matching(own, boxes or BOXES)
    if name.endswith("ForSemanticSegmentation"):
        loss = lambda m, images, labels: m(pixel_values=images, labels=labels).loss  # noqa: E731
        return Trial(partial(_pixels, own), loss, _said(own))
    if module.startswith(("torchvision.models.segmentation", "segmentation_models_pytorch.")):
        return Trial(partial(_pixels, own), _pixel_loss, _said(own))
    if model is backbone:
        said = f"{_said(own)}; the loss is the sum of the means of what the backbone gives"
        return Trial(lambda n: (torch.rand(n, 3, *own), None), _means, said)
    raise InputError(
        f"nothing tells how {name} is trained: give examples=, from a number of images to images"
        " and targets, and loss=, from a model, images and targets to the loss"
    )


def _said(size: tuple[int, int]) -> str:
    return f"planned on images of {size[0]} x {size[1]}"


def _pixels(size: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 3, *size), torch.zeros(count, *size, dtype=torch.long)


def _pixel_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every pixel; torchvision's models may have an auxiliary head."""
    output = model(images)
    if isinstance(output, Tensor):
        return F.cross_entropy(output.float(), labels)
    loss = F.cross_entropy(output["out"].float(), labels)
    return loss + 0.5 * F.cross_entropy(output["aux"].float(), labels) if "aux" in output else loss


def _means(model: nn.Module, images: Tensor, _: None) -> Tensor:
    return torch.stack([y.float().mean() for y in tensors(model(images)) if y.requires_grad]).sum()


def _resized(model: Any) -> tuple[int, int]:
    """What torchvision's detectors make of an image of 4 : 3."""
    fixed = model.transform.fixed_size
    if fixed is not None:
        return fixed[1], fixed[0]
    low, high = min(model.transform.min_size), model.transform.max_size
    return low, min(low * SIDES[0] // SIDES[1], high)


def _detection(model: Any, size: tuple[int, int], boxes: int | None) -> Trial:
    heads = getattr(model, "roi_heads", None)
    if boxes is None:
        sampler = getattr(heads, "fg_bg_sampler", None)
        most = (
            BOXES if sampler is None else sampler.batch_size_per_image * sampler.positive_fraction
        )
        boxes = int(most)
    masks = getattr(heads, "mask_predictor", None) is not None
    keypoints = getattr(heads, "keypoint_predictor", None)
    points = keypoints.kps_score_lowres.out_channels if keypoints is not None else 0
    examples = partial(_detected, size, boxes, masks, points)
    return Trial(examples, _summed, f"{_said(size)} with {boxes} boxes each", looks=True)


def _detected(
    size: tuple[int, int], boxes: int, masks: bool, points: int, count: int
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images = [torch.rand(3, *size) for _ in range(count)]
    return images, [_target(_boxes(boxes, size), size, masks, points) for _ in images]


def _target(boxes: Tensor, size: tuple[int, int], masks: bool, points: int) -> dict[str, Tensor]:
    """Objects of class 1, each the whole of its box."""
    count = len(boxes)
    target = {"boxes": boxes, "labels": torch.ones(count, dtype=torch.long)}
    if masks:
        target["masks"] = torch.zeros(count, *size, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(target["masks"], boxes.long(), strict=True):
            mask[top:bottom, left:right] = 1
    if points:
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        seen = torch.ones(count, points, 1)
        target["keypoints"] = torch.cat([centre[:, None].expand(-1, points, -1), seen], 2)
    return target


def _boxes(count: int, size: tuple[int, int]) -> Tensor:
    """Draw boxes between an eighth and a half of the image wide and high, `(n, 4)` in pixels."""
    height, width = size
    scale = torch.tensor([width, height])
    sides = (0.125 + 0.375 * torch.rand(count, 2)) * scale
    corner = torch.rand(count, 2) * (scale - sides)
    return torch.cat([corner, corner + sides], 1)


def _summed(model: nn.Module, images: Any, targets: Any) -> Tensor:
    return torch.stack(list(model(images, targets).values())).sum()


def _matching(size: tuple[int, int], boxes: int) -> Trial:
    def examples(count: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        images, targets = torch.rand(count, 3, *size), []
        for _ in images:
            corners = _boxes(boxes, size) / torch.tensor([size[1], size[0]] * 2)
            sides = corners[:, 2:] - corners[:, :2]
            place = torch.cat([corners[:, :2] + sides / 2, sides], 1)
            classes = torch.zeros(boxes, dtype=torch.long)
            targets.append({"class_labels": classes, "boxes": place})
        return images, targets

    def loss(tuned: Any, images: Tensor, targets: Any) -> Tensor:
        return tuned(pixel_values=images, labels=targets).loss

    return Trial(examples, loss, f"{_said(size)} with {boxes} boxes each", looks=True)

"""Pictures of predictions: classes of pixels, boxes, masks, names and scores, over the image."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from .results import Predicted

ALPHA = 0.5
Colour = tuple[int, int, int]


def palette(count: int) -> list[Colour]:
    """Give a colour to each class, neighbours far apart on the colour wheel.

    Args:
        count: How many.

    Returns:
        RGB from 0 to 255; the same class has the same colour for any count.
    """
    golden = (5**0.5 - 1) / 2
    hues = (i * golden % 1 for i in range(count))
    wheel = (colorsys.hsv_to_rgb(h, 0.85, 1.0) for h in hues)
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in wheel]


def draw(
    image: Tensor, predicted: Predicted, names: Sequence[str], threshold: float = 0.5
) -> Tensor:
    """Draw what was predicted for an image over it.

    Args:
        image: `(C, H, W)` uint8, grey or RGB.
        predicted: What a dense task's `predict` gave for it, or what its `labelled` says is there.
        names: Of the classes. The class of pixels that is called background is left as it is, and
            so are pixels of no class.
        threshold: Objects with a lower score are left out.

    Returns:
        `(3, H, W)` uint8.
    """
    picture = image.cpu().expand(3, -1, -1).contiguous()
    if isinstance(predicted, Tensor):
        return _pixels(picture, predicted.cpu(), names)
    return _objects(picture, {k: v.cpu() for k, v in predicted.items()}, names, threshold)


def _pixels(picture: Tensor, classes: Tensor, names: Sequence[str]) -> Tensor:
    colours = palette(len(names))
    known = [i for i in classes.unique().tolist() if i < len(names)]
    shown = [i for i in known if names[i] != "background"]
    if not shown:
        return picture
    masks = torch.stack([classes == i for i in shown])
    return draw_segmentation_masks(picture, masks, ALPHA, [colours[i] for i in shown])


def _objects(
    picture: Tensor, found: Mapping[str, Tensor], names: Sequence[str], threshold: float
) -> Tensor:
    scores = found.get("scores")
    kept = torch.ones(len(found["labels"])).bool() if scores is None else scores >= threshold
    labels = found["labels"][kept].tolist()
    boxes = found["boxes"][kept]
    whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not bool(whole.any()):
        return picture
    colours = [palette(len(names))[i] for i in labels]
    if "masks" in found:
        picture = draw_segmentation_masks(picture, found["masks"][kept], ALPHA, colours)
    said = [""] * len(labels) if scores is None else [f" {n:.2f}" for n in scores[kept].tolist()]
    texts = [f"{names[i]}{score}" for i, score in zip(labels, said, strict=True)]
    which = whole.nonzero()[:, 0].tolist()
    return draw_bounding_boxes(
        picture,
        boxes[whole],
        [texts[i] for i in which],
        [colours[i] for i in which],
        width=max(1, round(max(picture.shape[-2:]) / 300)),
    )


def shrunk(image: Tensor, found: Predicted, side: int) -> tuple[Tensor, Predicted]:
    """Shrink an image and its labels for a small picture with legible lines and words.

    Args:
        image: `(C, H, W)` uint8.
        found: What `draw` takes for it.
        side: Longest side it may have; a smaller image is left as it is.

    Returns:
        Both, what was found in pixels of the small image.
    """
    height, width = image.shape[-2:]
    scale = min(1.0, side / max(height, width))
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    small = resize(image, size, antialias=True)
    if isinstance(found, Tensor):
        return small, _masks(found[None], size)[0]
    x, y = size[1] / width, size[0] / height
    boxes = found["boxes"].float()
    own = {**found, "boxes": boxes * boxes.new_tensor([x, y, x, y])}
    return small, own | ({"masks": _masks(found["masks"], size)} if "masks" in found else {})


def _masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    return resize(masks, list(size), InterpolationMode.NEAREST_EXACT)

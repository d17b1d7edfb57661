"""Predictions as COCO writes results: a list of boxes and masks with image and category ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..extras import extra

Predicted = Tensor | Mapping[str, Tensor]
"""What a dense task says of an image: the class of each pixel `(H, W)`, or `boxes`, `labels` and
the like of its objects."""


def coco_results(predicted: Predicted, image_id: int) -> list[dict[str, Any]]:
    """Write what was predicted for an image.

    Args:
        predicted: What a dense task's `predict` gave for it.
        image_id: The id its results carry.

    Returns:
        An object each: `image_id`, `category_id` (the class's number from 1, as `categories`
        says), `bbox` (x, y, width, height in pixels), `score`, and `segmentation` (compressed run
        lengths) where there are masks. Of pixels, a `segmentation` for each class that is there.
    """
    if isinstance(predicted, Tensor):
        return [
            {
                "image_id": image_id,
                "category_id": i + 1,
                "segmentation": _runs(predicted == i),
            }
            for i in predicted.unique().tolist()
        ]
    found = {name: value.cpu() for name, value in predicted.items()}
    boxes = found["boxes"].double()
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    rows = [
        {
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [round(n, 3) for n in box],
            "score": score,
        }
        for label, box, score in zip(
            found["labels"].tolist(), sides.tolist(), found["scores"].tolist(), strict=True
        )
    ]
    if "masks" in found:
        rows = [
            {**row, "segmentation": _runs(mask)}
            for row, mask in zip(rows, found["masks"], strict=True)
        ]
    return rows


def answer_of(
    predicted: Predicted, path: str, names: Sequence[str], threshold: float
) -> dict[str, Any]:
    """Say what was predicted for an image.

    Args:
        predicted: What a dense task's `predict` gave for it.
        path: The image.
        names: Of the classes.
        threshold: Least score of an object that is told.

    Returns:
        `path`, and `pixels`, the share of each class that is there, or `objects`: `class`, `score`
        and `box` (x1, y1, x2, y2 in pixels) of each.
    """
    if isinstance(predicted, Tensor):
        counts = predicted.flatten().bincount(minlength=len(names)).tolist()
        shares = {name: n / predicted.numel() for name, n in zip(names, counts, strict=True) if n}
        return {"path": path, "pixels": shares}
    columns = (predicted[name].tolist() for name in ("labels", "scores", "boxes"))
    objects = [
        {"class": names[i], "score": score, "box": [round(n, 2) for n in box]}
        for i, score, box in zip(*columns, strict=True)
        if score >= threshold
    ]
    return {"path": path, "objects": objects}


def categories(names: tuple[str, ...]) -> list[dict[str, object]]:
    """List the classes as COCO does.

    Args:
        names: Of the classes.

    Returns:
        Ids from 1 and names.
    """
    return [{"id": i, "name": name} for i, name in enumerate(names, start=1)]


def _runs(mask: Tensor) -> dict[str, object]:
    coco = extra("pycocotools.mask", "dense")
    found = coco.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}

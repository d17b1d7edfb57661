"""How good predictions are: IoU and pixel accuracy of masks, average precision of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ..extras import extra
from .losses import IGNORE

Number = float | None
"""A score between 0 and 1; None where nothing defines it."""
MISSING = object()


@dataclass(frozen=True)
class Scores:
    """The scores of a split.

    Attributes:
        main: The number that runs are compared by.
        metrics: Every number by name.
        by_class: Numbers of each class, by name of the metric and of the class.
        curves: Precision at the recalls 0, .01, ..., 1 of objects found with an IoU of .50, by what
            is found (`box` or `mask`) and the name of the class; of classes that are there.
    """

    main: Number
    metrics: Mapping[str, Number] = field(default_factory=dict)
    by_class: Mapping[str, Mapping[str, Number]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)


class PixelScore:
    """Intersection over union of each class, counted over all pixels of all images.

        IoU_k = n_kk / (sum_j n_kj + sum_j n_jk - n_kk),   accuracy = sum_k n_kk / sum n

    n_kj counts pixels of class k that were taken for class j; pixels of class 255 are left out. A
    class that is neither there nor predicted has no IoU, and the mean is over the others.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        """Start at no pixels.

        Args:
            classes: Names of the classes.
        """
        self.classes = classes
        metrics = extra("torchmetrics.classification", "dense")
        self.counts = metrics.MulticlassConfusionMatrix(
            len(classes), ignore_index=IGNORE, validate_args=False, sync_on_compute=False
        )

    def update(self, predicted: Tensor, mask: Tensor) -> None:
        """Count an image.

        Args:
            predicted: Classes `(H, W)`.
            mask: The true ones `(H, W)`, 255 where they do not count.
        """
        self.counts.to(predicted.device).update(predicted.flatten(), mask.flatten())

    def gather(self) -> None:
        """Count what every process has counted."""
        self.counts.confmat = sum(gather_object([self.counts.confmat.cpu()]))

    def compute(self) -> Scores:
        """Score all images so far.

        Returns:
            `miou`, `pixel_accuracy`, and `iou` by class.
        """
        n = self.counts.compute().double()
        hits = n.diagonal()
        union = n.sum(0) + n.sum(1) - hits
        iou = torch.where(union > 0, hits / union, torch.nan)
        mean = _number(iou.nanmean())
        accuracy = _number(hits.sum() / n.sum())
        by_class = {name: _number(v) for name, v in zip(self.classes, iou, strict=True)}
        return Scores(mean, {"miou": mean, "pixel_accuracy": accuracy}, {"iou": by_class})


class ObjectScore:
    """COCO's average precision of boxes and, where there are some, of masks.

    torchmetrics computes it with pycocotools: the mean over IoU thresholds .50 to .95 and over
    classes of the area under the precision-recall curve; at .50 and at .75 alone; and of small
    (below 32 x 32 pixels), medium and large (above 96 x 96) objects. At most 100 detections of an
    image count.
    """

    def __init__(self, classes: Sequence[str], masks: bool) -> None:
        """Start at no images.

        Args:
            classes: Names of the classes.
            masks: Whether masks are scored, beside boxes.
        """
        self.classes = classes
        self.kinds = ("bbox", "segm") if masks else ("bbox",)
        detection = extra("torchmetrics.detection", "dense")
        extra("pycocotools", "dense")
        self.metric = detection.MeanAveragePrecision(
            iou_type=self.kinds,
            class_metrics=True,
            extended_summary=True,
            backend="pycocotools",
            sync_on_compute=False,
        )

    def update(self, predicted: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        """Count an image.

        Args:
            predicted: `boxes` `(N, 4)`, `scores` and `labels` `(N,)`, and `masks` `(N, H, W)` bool.
            target: `boxes`, `labels`, and `masks`; `iscrowd` of objects that may be found or not.
        """
        self.metric.update([_on_cpu(predicted)], [_on_cpu(target)])

    def gather(self) -> None:
        """Collect the images of every process, in the order of a single process."""
        states = dict(self.metric.metric_state)
        shares = gather_object([states])
        for name in states:
            turns = zip_longest(*(share[name] for share in shares), fillvalue=MISSING)
            together = [item for turn in turns for item in turn if item is not MISSING]
            setattr(self.metric, name, together)

    def compute(self) -> Scores:
        """Score all images so far.

        Returns:
            `box_map`, `box_map_50`, `box_map_75`, `box_map_small`, `box_map_medium`,
            `box_map_large`, the same of `mask`, and `box_map` and `mask_map` by class. The main
            one is that of masks where there are masks.
        """
        found: dict[str, Any] = self.metric.compute()
        metrics: dict[str, Number] = {}
        by_class: dict[str, dict[str, Number]] = {}
        curves: dict[str, dict[str, tuple[float, ...]]] = {}
        seen = found["classes"].reshape(-1).tolist()
        for kind in self.kinds:
            own = "mask" if kind == "segm" else "box"
            prefix = f"{kind}_" if len(self.kinds) > 1 else ""
            for name in ("map", "map_50", "map_75", "map_small", "map_medium", "map_large"):
                metrics[f"{own}_{name}"] = _number(found[prefix + name])
            values = found[f"{prefix}map_per_class"].reshape(-1).tolist()
            each = dict(zip(seen, values, strict=True)) if seen else {}
            by_class[f"{own}_map"] = {
                name: _number(each.get(i, -1)) for i, name in enumerate(self.classes)
            }
            curves[own] = self._curves(seen, found[f"{prefix}precision"])
        main = metrics["mask_map" if "segm" in self.kinds else "box_map"]
        return Scores(main, metrics, by_class, curves)

    def _curves(self, seen: Sequence[int], precision: Tensor) -> dict[str, tuple[float, ...]]:
        """Name the curves at the lowest IoU, of all sizes, with the most detections."""
        rows = precision[0, :, :, 0, -1].T.tolist() if seen else ()
        pairs = zip(seen, rows, strict=True)
        return {self.classes[i]: tuple(row) for i, row in pairs if min(row) >= 0}


def _on_cpu(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in given.items()}


def _number(value: Tensor | float) -> Number:
    """A plain number; None for NaN and for COCO's -1, which say that there was nothing to score."""
    number = float(value)
    return number if number >= 0 else None

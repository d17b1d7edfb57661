"""Score a model during a run, over all its processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data import Sample
from .prepare import Run


def confusion_of(run: Run, model: Any, samples: tuple[Sample, ...]) -> Tensor:
    """Count, over all processes, images by true class and predicted class `(K, K)`."""
    classes, device = len(run.dataset.classes), run.accelerator.device
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    model.eval()
    with torch.no_grad():
        for images, labels, own, _ in run.batches(samples) if samples else ():
            predicted = model(images.to(device)).argmax(-1).cpu()
            pairs = labels[:own] * classes + predicted[:own]
            counts += pairs.bincount(minlength=classes * classes)
    if run.processes > 1:
        counts = run.accelerator.reduce(counts.to(device), "sum").cpu()
    return counts.view(classes, classes)


def accuracy_of(confusion: Tensor) -> float | None:
    """Top-1 accuracy; None without samples."""
    images = int(confusion.sum())
    return int(confusion.trace()) / images if images else None

"""Score a model during a run, over all its processes."""

from __future__ import annotations

from functools import singledispatch

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..data import Sample
from .prepare import Run


def outputs_of(run: Run, model: nn.Module, samples: tuple[Sample, ...]) -> tuple[Tensor, Tensor]:
    """Compute a model's outputs for images, and their targets, over all processes.

    Args:
        run: The run.
        model: What runs its model.
        samples: The images.

    Returns:
        Outputs (N, K), float32, and targets (N,) or (N, K), on the CPU, in the order of the images.
    """
    device = run.accelerator.device
    kept: list[tuple[Tensor, Tensor]] = []
    model.eval()
    with torch.no_grad():
        for images, targets, own, _ in run.batches(samples) if samples else ():
            kept.append((model(images.to(device)).float().cpu()[:own], targets[:own]))
    if run.processes > 1:
        together, steps = gather_object(kept), len(kept)  # one process's after another's
        kept = [part for step in range(steps) for part in together[step::steps]]
    if not kept:
        return torch.zeros(0, len(run.targets.names)), torch.zeros(0, dtype=torch.long)
    return torch.cat([outputs for outputs, _ in kept]), torch.cat([truth for _, truth in kept])


@singledispatch
def score_of(run: Run, model: nn.Module, samples: tuple[Sample, ...]) -> float | None:
    """Compute the score that a run follows; None without samples, or where it is not defined.

    A run of another kind registers how it is scored.

    Args:
        run: The run.
        model: What runs its model.
        samples: The images.

    Returns:
        The run's metric.
    """
    outputs, targets = outputs_of(run, model, samples)
    return run.targets.score(outputs, targets) if len(targets) else None


def confusion_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Count images by true class and predicted class `(K, K)`."""
    classes = outputs.shape[1]
    pairs = targets * classes + outputs.argmax(-1)
    return pairs.bincount(minlength=classes * classes).view(classes, classes)

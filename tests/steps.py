"""A real training step, metered."""

from __future__ import annotations

import copy

import torch

from lowtide import apply, footprint
from lowtide.families import image_shape
from lowtide.planning.simulate import set_up_step
from lowtide.planning.step import make_optimizer, training_step


def real_step(model, method, step):
    """Run a step of a copy of the model; the tuned copy, and the footprint."""
    tuned = set_up_step(apply(copy.deepcopy(model), method), step).train()
    optimizer = make_optimizer(tuned, step.opt)
    images = torch.randn(step.batch_size, *image_shape(model))
    labels = torch.zeros(step.batch_size, dtype=torch.long)
    batches = list(zip(images.chunk(step.accumulate), labels.chunk(step.accumulate), strict=True))
    return tuned, footprint(
        lambda: training_step(
            tuned, optimizer, batches, amp=step.amp, in_backward=step.update_in_backward
        ),
        tuned,
        optimizer,
    )

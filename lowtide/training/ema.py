"""The running average of what trains, which is scored and saved in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class WeightAverage:
    """After every update, `a <- d a + (1 - d) w`, from `a = w` at the start.

    It keeps one more copy of what trains. Buffers, such as the statistics of a BatchNorm, are not
    averaged.

    Attributes:
        decay: d.
        weights: What trains.
        averages: Its averages, in the same order.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start at the model's weights.

        Args:
            model: Its parameters that require a gradient are averaged.
            decay: d.
        """
        self.decay = decay
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.averages = [p.detach().clone() for p in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights."""
        for average, weight in zip(self.averages, self.weights, strict=True):
            average.lerp_(weight, 1 - self.decay)

    @contextlib.contextmanager
    def average_parameters(self) -> Iterator[None]:
        """Put the averages where the weights are, for the length of a block."""
        own = [w.data for w in self.weights]
        for weight, average in zip(self.weights, self.averages, strict=True):
            weight.data = average
        try:
            yield
        finally:
            for weight, data in zip(self.weights, own, strict=True):
                weight.data = data

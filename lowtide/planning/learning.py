"""What a planned step learns: a batch of arbitrary content, and a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..targets import Targets


class Learning(Protocol):
    """What a step learns: a batch of it, and its loss."""

    def example(self, batch_size: int, shape: Any) -> tuple[Any, Tensor]:
        """Give what a model takes, and what `loss` takes beside its answer, of any content."""

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Measure how far outputs are from targets."""


@dataclass(frozen=True)
class Labels:
    """Labels of images.

    Attributes:
        targets: Their kind.
    """

    targets: Targets

    def example(self, batch_size: int, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Give images and their targets.

        Args:
            batch_size: Images.
            shape: Of an image.

        Returns:
            Of arbitrary content.
        """
        return torch.empty(batch_size, *shape), self.targets.batch(batch_size)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Take the loss of the targets.

        Args:
            outputs: Of the model.
            targets: What `example` gave second.

        Returns:
            The loss.
        """
        return self.targets.loss(outputs, targets)

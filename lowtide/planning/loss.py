"""The loss of a training step, of a model on images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..targets.classify import Classify

Loss = Callable[[nn.Module, Any, Any], Tensor]
"""From a model, images and their targets to the mean training loss."""


def of_outputs(loss: Callable[[Any, Any], Tensor]) -> Loss:
    """Make a step's loss of a function of outputs and targets.

    Args:
        loss: From outputs and targets to their mean loss over images.

    Returns:
        The loss of a model on images.
    """
    return lambda model, images, targets: loss(model(images), targets)


CROSS_ENTROPY = of_outputs(Classify(()).loss)
"""The loss of one class per image, none of them weighed."""

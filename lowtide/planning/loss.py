"""The loss of a training step, of a model on images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
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


def of_pixels(loss: Loss, normalise: Callable[[Tensor], Tensor]) -> Loss:
    """Make a step's loss of images that are held in bytes: as floats a model has them in forward.

    Args:
        loss: The loss of a model on floats.
        normalise: From bytes to floats.

    Returns:
        The loss of a model on bytes.
    """
    return lambda model, images, targets: loss(model, normalise(images), targets)


def of_logits(loss: Callable[[Any, Any], Tensor]) -> Loss:
    """Make a step's loss of a function of logits, which a model gives alone or among more.

    Args:
        loss: From logits and targets to their mean loss over images.

    Returns:
        The loss of a model on images. It reads `logits` of what transformers' classifiers give, and
        torchvision's that have further heads in training, which then count for nothing.
    """
    return of_outputs(lambda outputs, targets: loss(_logits(outputs), targets))


def _logits(outputs: Any) -> Tensor:
    named = isinstance(outputs, Mapping)
    found = outputs.get("logits") if named else getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise InputError(
            f"the model gives a {type(outputs).__name__}, and nothing tells its logits: give"
            " examples=, from a number of images to images and targets, and loss="
        )
    return found


CROSS_ENTROPY = of_logits(Classify(()).loss)
"""The loss of one class per image, none of them weighed."""

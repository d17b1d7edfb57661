"""Whether the images of a batch depend on each other."""

from __future__ import annotations

from timm.layers.evo_norm import EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def shares_statistics(model: nn.Module) -> bool:
    """Say whether a training step makes one image's outputs depend on the others of its batch.

    Args:
        model: The model, in training mode.

    Returns:
        Whether a BatchNorm, or timm's EvoNorm of a batch, takes its statistics from the batch.
    """
    return any(
        isinstance(m, EvoNorm2dB0 | EvoNorm2dB1 | EvoNorm2dB2)
        or (isinstance(m, _BatchNorm) and (m.training or m.running_var is None))
        for m in model.modules()
    )

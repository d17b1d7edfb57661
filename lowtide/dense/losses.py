"""The loss of a segmentation: cross-entropy, and Dice beside it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..extras import extra

IGNORE = 255
"""The class of pixels that count for nothing."""


def segmentation_loss(
    logits: Tensor, masks: Tensor, *, smoothing: float = 0.0, dice: float = 0.0
) -> Tensor:
    """Average over images the mean cross-entropy of their pixels, and Dice of each.

        L = 1/B sum_b [ 1/N_b sum_i CE(z_bi, y_bi) + w Dice(z_b, y_b) ]

    N_b counts the pixels of image b whose class is not `IGNORE`; an image without one adds 0. Dice
    is that of segmentation_models_pytorch over the classes present in the image.

    Differs:
        The mean over all pixels of a batch weighs images by their labelled pixels, and Dice over a
        batch joins its images. Here an image is an image, so that micro-batches add up to the
        whole batch, of any sizes.

    Args:
        logits: `(B, K, H, W)`.
        masks: Classes `(B, H, W)`, int64, `IGNORE` for pixels that do not count.
        smoothing: Label smoothing of the cross-entropy.
        dice: w, the weight of Dice.

    Returns:
        The loss, float32.
    """
    logits = logits.float()
    each = F.cross_entropy(
        logits, masks, ignore_index=IGNORE, reduction="none", label_smoothing=smoothing
    )
    counts = (masks != IGNORE).sum((1, 2)).clamp(min=1)
    loss = (each.sum((1, 2)) / counts).mean()
    if dice:
        module = extra("segmentation_models_pytorch.losses", "dense")
        measure = module.DiceLoss("multiclass", ignore_index=IGNORE)
        parts = [measure(z[None], y[None]) for z, y in zip(logits, masks, strict=True)]
        loss = loss + dice * torch.stack(parts).mean()
    return loss

"""Mixup and CutMix by timm, drawn from the seed of the update."""

from __future__ import annotations

import numpy as np
import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from .config import RunConfig


def mix(
    config: RunConfig, images: Tensor, labels: Tensor, classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Mix the images of a batch in pairs, and their labels likewise.

        x_i <- t x_i + (1 - t) x_(B-1-i)  or a rectangle of x_(B-1-i) in x_i,    t ~ Beta(a, a)

    One t for the batch; with both on, one of the two is drawn. Of an odd number of images the last
    stays as it is.

    Args:
        config: `mixup`, `cutmix` are the a of each, 0 for off; `smoothing` goes into the targets.
        images: `(B, C, H, W)`; may be changed in place.
        labels: `(B,)`.
        classes: How many there are, K.
        seed: Of the update.

    Returns:
        The images and targets `(B, K)`, each row of which adds up to 1; the labels themselves where
        neither is on.
    """
    if not config.mixes:
        return images, labels
    mixup = Mixup(
        config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=classes
    )
    even = len(images) // 2 * 2
    parts = [(images[even:], mixup_target(labels[even:], classes, 1.0, config.smoothing))]
    kept = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        if even:
            parts.insert(0, mixup(images[:even], labels[:even]))
    finally:
        np.random.set_state(kept)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

"""Sliding windows: an image of any size through a model that takes one size."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError


def starts(length: int, window: int, stride: int) -> list[int]:
    """List where windows begin along one side.

    Args:
        length: Of the side; at least a window.
        window: Side of a window.
        stride: Pixels from one window to the next.

    Returns:
        Multiples of the stride, the last one moved back so that its window ends with the side.
    """
    return sorted({min(i, length - window) for i in range(0, length - window + stride, stride)})


def slide(
    model: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int, batch_size: int = 1
) -> Tensor:
    """Score every pixel of an image in windows; where windows overlap, scores are averaged.

    An image smaller than a window is filled with 0 at its bottom and right.

    Args:
        model: From `(B, C, window, window)` to logits `(B, K, window, window)`.
        image: `(C, H, W)`.
        window: Side of a window.
        stride: Pixels from one window to the next; at most a window, so that none is left out.
        batch_size: Windows run at once.

    Returns:
        Logits `(K, H, W)`.

    Raises:
        InputError: The stride is longer than a window.
    """
    if stride > window:
        raise InputError(
            f"window_stride must be at most the window, {window} pixels, not {stride}: pixels"
            " between two windows would have no score"
        )
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, max(0, window - width), 0, max(0, window - height)))
    rows, columns = (starts(n, window, stride) for n in padded.shape[-2:])
    corners = [(y, x) for y in rows for x in columns]
    total = torch.zeros(())
    count = padded.new_zeros(1, *padded.shape[-2:])
    for i in range(0, len(corners), batch_size):
        some = corners[i : i + batch_size]
        cut = torch.stack([padded[:, y : y + window, x : x + window] for y, x in some])
        for (y, x), scores in zip(some, model(cut), strict=True):
            if total.dim() == 0:
                total = scores.new_zeros(len(scores), *padded.shape[-2:])
            total[:, y : y + window, x : x + window] += scores
            count[:, y : y + window, x : x + window] += 1
    return (total / count)[:, :height, :width]

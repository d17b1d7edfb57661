"""The loss of a segmentation: cross-entropy, and Dice beside it, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.once import once

IGNORE = 255
"""The class of pixels that count for nothing."""
EPS = 1e-7
"""Least denominator of Dice."""
Piece = tuple[int, slice]
"""An image, and rows of it."""


def segmentation_loss(
    scores: Tensor,
    masks: Tensor,
    *,
    smoothing: float = 0.0,
    dice: float = 0.0,
    most: int | None = None,
) -> Tensor:
    """Average over images the mean cross-entropy of their pixels, and Dice of each.

        L = 1/B sum_b [ 1/N_b sum_i CE(z_bi, y_bi) + w Dice(z_b, y_b) ]
        Dice = 1/K sum_k [ 1 - 2 sum_i p_ik y_ik / (sum_i p_ik + sum_i y_ik) ],   p = softmax(z)

    N_b counts the pixels of image b whose class is not `IGNORE`; an image without one adds 0. z are
    the scores, brought to the size of the masks by `enlarged`. Dice sums over the classes k present
    in the image.

    Both are made of sums over pixels. With `most` they are gathered piece by piece, some rows of an
    image each, and gathered once more in backward: enlarged scores, their softmax and gradient
    never exist whole.

    Differs:
        The mean over all pixels of a batch weighs images by their labelled pixels, and Dice over a
        batch joins its images. Here an image is an image, so that micro-batches add up to the
        whole batch, of any sizes.

    Args:
        scores: `(B, K, h, w)`.
        masks: Classes `(B, H, W)`, int64, `IGNORE` for pixels that do not count.
        smoothing: Label smoothing of the cross-entropy.
        dice: w, the weight of Dice.
        most: Most numbers of a piece, one row at least; None takes all pixels at once.

    Returns:
        The loss, float32 at least.

    Saves:
        With `most` the scores and the masks; without, what torch keeps of enlarged scores.
    """
    if most is None:
        sums = _sums(enlarged(scores, masks.shape[-2:]), masks, smoothing, dice > 0)
    else:
        sums = _Pieces.apply(scores, masks, smoothing, dice > 0, most)
    labelled = (masks != IGNORE).sum((1, 2)).clamp(min=1)
    loss = (sums[:, 0] / labelled).mean()
    return loss + dice * _dice(sums[:, 1:]) if dice else loss


def enlarged(scores: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bring scores to the size of an image, bilinearly; the corners stay corners.

    Args:
        scores: `(B, K, h, w)`.
        size: H and W.

    Returns:
        `(B, K, H, W)`.
    """
    if scores.shape[-2:] == tuple(size):
        return scores
    return F.interpolate(scores, size, mode="bilinear", align_corners=True)


def _sums(logits: Tensor, masks: Tensor, smoothing: float, dice: bool) -> Tensor:
    """Sum over pixels, `(B, 1)`: cross-entropy; with Dice of each class p y, p and y as well."""
    logits = _wide(logits)
    each = F.cross_entropy(
        logits, masks, ignore_index=IGNORE, reduction="none", label_smoothing=smoothing
    )
    entropy = each.sum((1, 2))[:, None]
    if not dice:
        return entropy
    counted = masks != IGNORE
    classes = (masks * counted)[:, None]
    shares = logits.softmax(1) * counted[:, None]
    none = shares.new_zeros(shares.shape[:2])
    true = none.scatter_add(1, classes.flatten(1), counted.flatten(1).to(none.dtype))
    hits = none.scatter_add(1, classes.flatten(1), shares.gather(1, classes).flatten(1))
    return torch.cat([entropy, hits, shares.sum((2, 3)), true], 1)


def _wide(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype.itemsize < 4 else scores


def _dice(sums: Tensor) -> Tensor:
    """Dice of each image from its sums, `(B, 3 K)`, and their mean."""
    both, predicted, true = sums.chunk(3, 1)
    lost = 1 - 2 * both / (predicted + true).clamp(min=EPS)
    return (lost * (true > 0)).mean()


class _Pieces(torch.autograd.Function):
    """The sums of each image; the backward computes each piece again and adds up its gradient."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, masks: Tensor, smoothing: float, dice: bool, most: int
    ) -> Tensor:
        ctx.save_for_backward(scores, masks)
        ctx.options = smoothing, dice, most
        sums = [torch.zeros(())] * len(masks)
        for image, rows in _pieces(scores, masks, most):
            near, read = _rows(scores, masks, rows)
            large = read(_wide(scores[image, None, :, near]))
            found = _sums(large, masks[image, None, rows], smoothing, dice)
            sums[image] = sums[image] + found if rows.start else found
        return torch.cat(sums)

    @staticmethod
    @once
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        scores, masks = ctx.saved_tensors
        smoothing, dice, most = ctx.options
        gradient = torch.zeros_like(scores, dtype=given.dtype)
        for image, rows in _pieces(scores, masks, most):
            near, read = _rows(scores, masks, rows)
            small = _wide(scores[image, None, :, near]).detach().requires_grad_()
            with torch.enable_grad():
                sums = _sums(read(small), masks[image, None, rows], smoothing, dice)
            (found,) = torch.autograd.grad(sums, small, given[image, None])
            gradient[image, None, :, near] += found
        return gradient.to(scores.dtype), None, None, None, None


def _pieces(scores: Tensor, masks: Tensor, most: int) -> Iterator[Piece]:
    height, width = masks.shape[-2:]
    rows = max(1, most // (scores.shape[1] * width))
    for image in range(len(masks)):
        for start in range(0, height, rows):
            yield image, slice(start, min(start + rows, height))


def _rows(scores: Tensor, masks: Tensor, rows: slice) -> tuple[slice, Any]:
    """Say which rows of the scores some rows of the image are made of, and how."""
    size, own = masks.shape[-2:], scores.shape[-2:]
    if own == size:
        return rows, lambda small: small
    step = (own[0] - 1) / max(size[0] - 1, 1)
    low = min(int(rows.start * step), own[0] - 1)
    high = min(int((rows.stop - 1) * step) + 1, own[0] - 1)

    def read(small: Tensor) -> Tensor:
        place = torch.arange(rows.start, rows.stop, device=small.device).to(small.dtype)
        place = place * step - low
        above = place.long().clamp(0, high - low)
        share = (place - above)[:, None]
        below = (above + 1).clamp(max=high - low)
        mixed = small[:, :, above] * (1 - share) + small[:, :, below] * share
        wide = (len(place), size[1])
        return F.interpolate(mixed, wide, mode="bilinear", align_corners=True)

    return slice(low, high + 1), read

"""The loss of a segmentation: its equation, in pieces and whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor

from lowtide.dense.losses import IGNORE, enlarged, segmentation_loss

SIZES = [(4, 5), (13, 11), (1, 1)]
"""Of scores, for masks of 13 x 11."""


def example(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scores of four classes and masks without the last class, some of them without a label."""
    torch.manual_seed(0)
    scores = torch.randn(3, 4, *size, dtype=torch.float64, requires_grad=True)
    masks = torch.randint(3, (3, 13, 11))
    masks[0, 2:7] = IGNORE
    masks[2] = IGNORE
    return scores, masks


def by_hand(scores: Tensor, masks: Tensor, smoothing: float, dice: float) -> Tensor:
    """Image by image: cross-entropy's mean, and segmentation_models_pytorch's Dice loss."""
    total = torch.zeros((), dtype=torch.float64)
    for z, y in zip(scores, masks, strict=True):
        if z.shape[1:] != y.shape:
            z = F.interpolate(z[None], y.shape, mode="bilinear", align_corners=True)[0]
        if (y != IGNORE).any():
            given = {"ignore_index": IGNORE, "label_smoothing": smoothing}
            total = total + F.cross_entropy(z[None], y[None], **given)
        if dice:
            total = total + dice * DiceLoss("multiclass", ignore_index=IGNORE)(z[None], y[None])
    return total / len(masks)


@pytest.mark.parametrize("most", [None, 1, 4 * 11 * 5, 10**6])
@pytest.mark.parametrize("dice", [0.0, 0.7])
@pytest.mark.parametrize("size", SIZES)
def test_the_loss_is_its_equation_in_pieces_and_whole(
    size: tuple[int, int], dice: float, most: int | None
) -> None:
    scores, masks = example(size)
    loss = segmentation_loss(scores, masks, smoothing=0.1, dice=dice, most=most)
    expected = by_hand(scores, masks, 0.1, dice)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    (mine,) = torch.autograd.grad(3 * loss, scores)
    (theirs,) = torch.autograd.grad(3 * expected, scores)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_scores_of_two_bytes_are_enlarged_in_four() -> None:
    """Autocast's scores give a float32 loss, and their gradient comes in their own dtype."""
    scores, masks = example((4, 5))
    small = scores.detach().bfloat16().requires_grad_()
    loss = segmentation_loss(small, masks, most=44)
    (mine,) = torch.autograd.grad(loss, small)
    wide = small.detach().double().requires_grad_()
    (theirs,) = torch.autograd.grad(segmentation_loss(wide, masks), wide)
    assert loss.dtype == torch.float32 and mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine.double(), theirs, rtol=2**-8, atol=1e-9)


def test_scores_are_enlarged_as_the_decoders_own_heads_do() -> None:
    scores = torch.randn(2, 3, 8, 8)
    own = torch.nn.Upsample(mode="bilinear", scale_factor=4, align_corners=True)
    assert torch.equal(enlarged(scores, (32, 32)), own(scores))

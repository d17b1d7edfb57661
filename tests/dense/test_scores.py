"""Losses and scores against numbers computed by hand, and windows against whole images."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowtide.dense.frames import Frame
from lowtide.dense.losses import segmentation_loss
from lowtide.dense.scores import ObjectScore, PixelScore
from lowtide.dense.windows import slide, starts
from lowtide.errors import InputError


def test_iou_and_accuracy_are_those_counted_by_hand() -> None:
    score = PixelScore(["a", "b", "c", "d"])
    score.update(torch.tensor([[0, 0, 0], [1, 1, 2]]), torch.tensor([[0, 0, 1], [1, 2, 255]]))
    score.update(torch.tensor([[2]]), torch.tensor([[2]]))
    found = score.compute()
    # a: 2 of 3; b: 1 of 3; c: 1 of 2; d is nowhere.
    assert found.by_class["iou"] == pytest.approx({"a": 2 / 3, "b": 1 / 3, "c": 1 / 2, "d": None})
    assert found.metrics == pytest.approx({"miou": 0.5, "pixel_accuracy": 4 / 6})
    assert found.main == 0.5


def _boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).reshape(-1, 4)


def test_average_precision_of_boxes_is_that_computed_by_hand() -> None:
    score = ObjectScore(["a", "b", "c"], masks=False)
    truth = {
        "boxes": _boxes([0, 0, 100, 100], [200, 0, 300, 100]),
        "labels": torch.tensor([0, 0]),
    }
    # One box right, one of IoU 82 x 100 / 100 x 100: right at seven of ten thresholds.
    found = {
        "boxes": _boxes([0, 0, 100, 100], [200, 0, 282, 100]),
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([0, 0]),
    }
    score.update(found, truth)
    result = score.compute()
    half = 51 / 101  # recall 0.5 covers 51 of COCO's 101 points
    assert result.main == pytest.approx((7 * 1 + 3 * half) / 10)
    assert result.metrics["box_map_50"] == pytest.approx(1)
    assert result.metrics["box_map_75"] == pytest.approx(1)
    assert result.metrics["box_map_large"] == pytest.approx(result.main)
    assert result.metrics["box_map_small"] is None
    assert result.by_class["box_map"] == pytest.approx({"a": result.main, "b": None, "c": None})


def test_average_precision_of_masks_looks_at_masks() -> None:
    score = ObjectScore(["a"], masks=True)
    mask = torch.zeros(1, 200, 200, dtype=torch.bool)
    mask[:, :100, :100] = True
    half = mask.clone()
    half[:, :, 50:] = False
    box, label = _boxes([0, 0, 100, 100]), torch.tensor([0])
    score.update(
        {"boxes": box, "scores": torch.ones(1), "labels": label, "masks": half},
        {"boxes": box, "labels": label, "masks": mask.byte()},
    )
    found = score.compute()
    assert found.metrics["box_map"] == pytest.approx(1)
    assert found.main == found.metrics["mask_map"] == pytest.approx(0.1)  # IoU .5: .50 alone


def test_the_loss_is_a_mean_over_images_so_that_micro_batches_add_up() -> None:
    logits, masks = torch.randn(3, 4, 8, 8), torch.randint(0, 4, (3, 8, 8))
    masks[0, :5] = 255
    masks[1] = 255
    by_hand = [
        F.cross_entropy(logits[i][:, masks[i] != 255].T, masks[i][masks[i] != 255]) for i in (0, 2)
    ]
    whole = segmentation_loss(logits, masks)
    torch.testing.assert_close(whole, torch.stack(by_hand).sum() / 3)
    for dice in (0.0, 0.7):
        whole = segmentation_loss(logits, masks, smoothing=0.1, dice=dice)
        parts = [
            segmentation_loss(logits[i : i + 1], masks[i : i + 1], smoothing=0.1, dice=dice)
            for i in range(3)
        ]
        torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_dice_falls_with_the_overlap() -> None:
    masks = torch.tensor([[[0, 0], [1, 1]]])
    right = F.one_hot(masks, 2).permute(0, 3, 1, 2).float() * 50
    both = [segmentation_loss(z, masks, dice=1.0) for z in (right, -right)]
    assert both[0] < 1e-4
    assert both[1] > 50


@pytest.mark.parametrize(("height", "width"), [(37, 50), (16, 16), (10, 40), (8, 5)])
def test_windows_give_what_a_translation_invariant_model_gives_of_the_whole(
    height: int, width: int
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.GELU(), nn.Conv2d(5, 4, 1)).double()
    image = torch.randn(3, height, width, dtype=torch.float64)
    with torch.no_grad():
        found = slide(model, image, 16, 7, batch_size=3)
        torch.testing.assert_close(found, model(image[None])[0])


def test_overlaps_are_averaged() -> None:
    calls = iter((1.0, 3.0))
    found = slide(
        lambda x: torch.full((1, 1, 4, 4), next(calls)), torch.zeros(1, 4, 6), window=4, stride=2
    )
    assert found[0, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_windows_cover_a_side_and_end_with_it() -> None:
    for length, window, stride in ((10, 4, 3), (10, 4, 4), (4, 4, 1), (9, 4, 2)):
        begins = starts(length, window, stride)
        covered = {i for b in begins for i in range(b, b + window)}
        assert covered == set(range(length)) and begins[-1] == length - window
    with pytest.raises(InputError, match="at most the window, 4 pixels, not 5"):
        slide(nn.Identity(), torch.zeros(1, 8, 8), 4, 5)


def test_a_frame_gives_back_what_it_took() -> None:
    frame = Frame(30, 60, 64)
    assert frame.inner == (32, 64)
    ramp = torch.linspace(0, 1, 60).expand(1, 30, 60)
    square = frame.put(ramp)
    assert square.shape == (1, 64, 64) and not square[:, 32:].any()
    assert (frame.maps(square) - ramp).abs().max() < 0.02
    boxes = torch.tensor([[0.0, 0, 64, 32], [32, 16, 80, 40]])
    assert frame.boxes(boxes).tolist() == [[0, 0, 60, 30], [30, 15, 60, 30]]
    assert math.prod(Frame(1, 1000, 64).inner) == 64

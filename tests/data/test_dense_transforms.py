"""Painted rectangles, their boxes, masks and labels stay together through every recipe."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from lowtide.data.dense import RECIPES, Kind, transforms
from lowtide.errors import InputError

HEIGHT, WIDTH = 180, 260
RECTANGLES = torch.tensor([[20, 30, 110, 150], [140, 60, 240, 100]])
COLOURS = torch.tensor([[250, 0, 0], [0, 0, 250]])
SIZE = (160, 200)


def painted(kind: Kind) -> tuple[tv_tensors.Image, dict]:
    """Two rectangles, red of class 0 and blue of class 1, on grey."""
    image = torch.full((3, HEIGHT, WIDTH), 120, dtype=torch.uint8)
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    for mask, colour, (x1, y1, x2, y2) in zip(masks, COLOURS, RECTANGLES.tolist(), strict=True):
        image[:, y1:y2, x1:x2] = colour[:, None, None]
        mask[y1:y2, x1:x2] = 1
    target: dict = {"image_id": 7, "path": "a.png"}
    if kind == "semantic":
        target["mask"] = tv_tensors.Mask((masks * torch.tensor([1, 2])[:, None, None]).sum(0))
        return tv_tensors.Image(image), target
    target |= {
        "boxes": tv_tensors.BoundingBoxes(
            RECTANGLES.float(), format="XYXY", canvas_size=(HEIGHT, WIDTH)
        ),
        "labels": torch.tensor([0, 1]),
        "iscrowd": torch.tensor([0, 0]),
        "area": torch.tensor([10800.0, 4000.0]),
    }
    if kind == "instances":
        target["masks"] = tv_tensors.Mask(masks)
    return tv_tensors.Image(image), target


def seen(image: Tensor) -> Tensor:
    """Where a colour is, whatever was done to it: grey and what was filled have none."""
    return image.amax(0) - image.amin(0) > 0.25


def around(mask: Tensor) -> Tensor:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.tensor([
        columns.min(),
        rows.min(),
        columns.max() + 1,
        rows.max() + 1,
    ]).float()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_boxes_and_masks_follow_what_is_painted(recipe, train):
    transform = transforms("instances", SIZE, train=train, recipe=recipe)
    kept = 0
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = transform(*painted("instances"))
        assert image.dtype == torch.float32 and 0 <= image.min() and image.max() <= 1
        assert recipe == "shortest" or image.shape == (3, *SIZE)
        assert target["boxes"].canvas_size == image.shape[1:] == target["masks"].shape[1:]
        parts = [target[key] for key in ("boxes", "labels", "iscrowd", "area", "masks")]
        assert len({len(part) for part in parts}) == 1
        for box, label, mask in zip(
            target["boxes"], target["labels"], target["masks"], strict=True
        ):
            kept += 1
            x1, y1, x2, y2 = box.round().int().tolist()
            inside = seen(image)[y1:y2, x1:x2]
            edge = 2 * (x2 - x1 + y2 - y1)
            assert (~inside).sum() <= edge
            cut = train and recipe in {"jitter", "lsj"}  # and drawn anew around its mask
            assert (around(mask) - box).abs().max() <= (0 if cut else 1.5)
            outside = seen(image).clone()
            outside[y1:y2, x1:x2] = False
            assert (mask.bool() & outside).sum() <= edge
            if recipe != "jitter":  # which may exchange the channels
                assert (
                    inside.sum() == 0 or image[:, y1:y2, x1:x2].mean((1, 2)).argmax() == 2 * label
                )
        drawn = torch.zeros(image.shape[1:], dtype=torch.bool)
        for x1, y1, x2, y2 in target["boxes"].round().int().tolist():
            drawn[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = True
        assert not (seen(image) & ~drawn).any(), "an object lost its box"
    assert kept >= 12 and (train or kept == 24)


@pytest.mark.parametrize("recipe", RECIPES)
def test_semantic_masks_follow_what_is_painted_and_what_is_filled_is_ignored(recipe):
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    transform = transforms("semantic", SIZE, train=True, recipe=recipe, mean=mean, std=std)
    filled_any = 0
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = transform(*painted("semantic"))
        mask = target["mask"]
        assert mask.dtype == torch.int64 and mask.shape == image.shape[1:]
        filled = mask == 255
        assert ((image == 0).all(0) == filled).all()
        filled_any += int(filled.any())
        pixels = 0.25 * image + 0.5
        differ = (seen(pixels) != ((mask > 0) & ~filled)) & ~filled
        assert differ.float().mean() < 0.02
    assert (filled_any > 0) == (recipe != "shortest")


def test_evaluation_says_how_to_take_answers_back():
    image, target = transforms("boxes", 100, train=False)(*painted("boxes"))
    assert image.shape == (3, 100, 100) and target["size"] == (HEIGHT, WIDTH)
    down, across = target["scale"]
    back = target["boxes"] / torch.tensor([across, down, across, down])
    assert torch.allclose(back.as_subclass(Tensor), RECTANGLES.float(), atol=1e-3)
    assert target["area"].tolist() == [10800, 4000]


def test_normalisation_is_the_backbones():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    given, _ = painted("boxes")
    found, _ = transforms("boxes", (HEIGHT, WIDTH), train=False, mean=mean, std=std)(
        *painted("boxes")
    )
    wanted = (given / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_crowds_are_left_out_of_training_only():
    image, target = painted("instances")
    target["iscrowd"] = torch.tensor([1, 0])
    for recipe in RECIPES:
        torch.manual_seed(0)
        _, trained = transforms("instances", SIZE, train=True, recipe=recipe)(image, target)
        assert trained["labels"].tolist() in ([1], [])
        _, scored = transforms("instances", SIZE, train=False, recipe=recipe)(image, target)
        assert scored["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("train", [True, False])
def test_an_image_without_objects_stays_one(recipe, train):
    image, target = painted("instances")
    empty = {
        **target,
        "boxes": tv_tensors.wrap(target["boxes"][:0], like=target["boxes"]),
        "masks": tv_tensors.wrap(target["masks"][:0], like=target["masks"]),
        **{key: target[key][:0] for key in ("labels", "iscrowd", "area")},
    }
    for size in (SIZE, 3):
        image, found = transforms("instances", size, train=train, recipe=recipe)(
            painted("instances")[0], empty
        )
        assert found["boxes"].shape == (0, 4) and found["masks"].shape == (0, *image.shape[1:])


def test_large_scale_jitter_spans_its_range():
    """Scales of an uncut object are within 0.1 to 2 times the one that fits, near both ends."""
    fits = min(SIZE[0] / HEIGHT, SIZE[1] / WIDTH)
    transform = transforms("boxes", SIZE, train=True, recipe="lsj")
    torch.manual_seed(0)
    heights = []
    for _ in range(200):
        _, target = transform(*painted("boxes"))
        boxes = target["boxes"][target["labels"] == 1]
        heights += (boxes[:, 3] - boxes[:, 1]).tolist()
    assert max(heights) <= 2 * fits * 40 + 1 and max(heights) > 1.7 * fits * 40
    assert min(heights) < 0.3 * fits * 40


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"recipe": "ljs"}, "did you mean lsj"),
        ({"kind": "box"}, "did you mean boxes"),
        ({"size": (0, 5)}, "expected a height and a width"),
        ({"mean": (0.5,) * 3}, "given together"),
    ],
)
def test_what_cannot_work_is_one_line(changed, said):
    given = {"kind": "boxes", "size": 64, "train": True, **changed}
    with pytest.raises(InputError, match=said):
        transforms(given.pop("kind"), given.pop("size"), **given)


def test_the_steps_are_torchvisions():
    assert isinstance(transforms("boxes", 64, train=True), v2.Compose)

"""Augmentation of images with their boxes and masks: a recipe is a list of torchvision's v2."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from ...errors import InputError, UnknownName
from .folder import Item, Target
from .listing import KINDS, Kind
from .masks import IGNORE

Recipe = Literal["none", "flip", "shortest", "jitter", "lsj"]
"""What training does at random; see `transforms`."""
RECIPES: tuple[Recipe, ...] = get_args(Recipe)

LONGEST = 1333 / 800
"""Of recipe `shortest`: the longest side over the shortest, as in Faster R-CNN's 800 and 1333."""

_SCALES = {"jitter": (0.5, 2.0), "lsj": (0.1, 2.0)}


def transforms(
    kind: Kind,
    size: int | tuple[int, int],
    *,
    train: bool,
    recipe: Recipe = "flip",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Callable[[tv_tensors.Image, Target], Item]:
    """Make the transform of a split.

    Images keep their aspect. All recipes but `shortest` give images of one size: the image is
    resized to fit into it, and filled on the right and below with 0 after normalisation (the mean
    colour), masks with 0, semantic masks with 255. In training,

    - `none` does nothing at random;
    - `flip` flips half of the images;
    - `shortest` resizes the shortest side to one of five sizes from 0.6 to 1 times `size`, the
      longest to at most 1333 / 800 times that (Faster R-CNN's), and flips; images differ in size;
    - `jitter` scales by 0.5 to 2 from the size that fits, crops at random, flips and distorts
      colours, as segmenters are trained;
    - `lsj` is large-scale jitter, 0.1 to 2, a crop and a flip (Ghiasi et al. 2021,
      arXiv:2012.07177; the recipe of ViTDet, Li et al. 2022, arXiv:2203.16527).

    In training, crowds are left out, and boxes are cut at the edges and dropped, with their labels
    and masks, where less than a pixel is left. In evaluation every object stays, and the target
    holds besides `size`, the original height and width, and `scale`, by which they were multiplied
    (both as two numbers), so that answers can be taken back; `area` stays the original's.

    Args:
        kind: What the targets hold.
        size: Height and width in pixels, or one number for both.
        train: Whether the images are trained on.
        recipe: What training does at random.
        mean: Of each channel, such as `Preprocessing.mean`; None leaves values from 0 to 1, which
            torchvision's detectors want.
        std: Of each channel.

    Returns:
        A callable from image and target to image (float32) and target.

    Raises:
        InputError: A side is below 2 pixels, or only one of `mean` and `std` is given.
        UnknownName: There is no such kind or recipe.
    """
    if kind not in KINDS:
        raise UnknownName("kind of labels", kind, KINDS)
    if recipe not in RECIPES:
        raise UnknownName("recipe", recipe, RECIPES)
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 2:
        raise InputError(f"size {size}: expected a height and a width of 2 or more")
    if (mean is None) != (std is None):
        raise InputError("mean and std are given together or not at all")
    steps: list[Callable[[tv_tensors.Image, Target], Item]] = [
        _Resize(recipe, (height, width), train)
    ]
    crops = train and recipe in _SCALES
    if crops:
        steps.append(_Crop((height, width)))
    if train and recipe != "none":
        steps.append(v2.RandomHorizontalFlip())
    if train and recipe == "jitter":
        steps.append(v2.RandomPhotometricDistort())
    steps.append(v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True))
    if mean is not None and std is not None:
        steps.append(v2.Normalize(list(mean), list(std)))
    if recipe != "shortest":
        steps.append(_Fill((height, width), IGNORE if kind == "semantic" else 0))
    if train and kind != "semantic":
        steps.append(_Sanitize(tight=crops and kind == "instances"))
    return v2.Compose(steps)


@dataclasses.dataclass(frozen=True)
class _Resize:
    recipe: Recipe
    size: tuple[int, int]
    train: bool

    def __call__(self, image: tv_tensors.Image, target: Target) -> Item:
        height, width = image.shape[-2:]
        factor = self._factor(height, width)
        # Torch 2.14 fails at a result of one pixel.
        size = max(2, round(height * factor)), max(2, round(width * factor))
        image, target = v2.Resize(size)(image, target)
        if not self.train:
            scale = (size[0] / height, size[1] / width)
            target = {**target, "size": (height, width), "scale": scale}
        return image, target

    def _factor(self, height: int, width: int) -> float:
        if self.recipe == "shortest":
            whole = min(self.size)
            shortest = whole * (0.6 + 0.1 * _below(5)) if self.train else whole
            return min(shortest / min(height, width), LONGEST * whole / max(height, width))
        fits = min(self.size[0] / height, self.size[1] / width)
        if not self.train or self.recipe not in _SCALES:
            return fits
        low, high = _SCALES[self.recipe]
        return fits * (low + (high - low) * float(torch.rand(())))


def _below(count: int) -> int:
    return int(torch.randint(count, ()))


@dataclasses.dataclass(frozen=True)
class _Crop:
    """Take a part of at most a size, anywhere in the image."""

    size: tuple[int, int]

    def __call__(self, image: tv_tensors.Image, target: Target) -> Item:
        height, width = (min(*sides) for sides in zip(image.shape[-2:], self.size, strict=True))
        return v2.RandomCrop((height, width))(image, target)


@dataclasses.dataclass(frozen=True)
class _Fill:
    """Fill up to a size on the right and below."""

    size: tuple[int, int]
    mask: int

    def __call__(self, image: tv_tensors.Image, target: Target) -> Item:
        below, right = (b - a for a, b in zip(image.shape[-2:], self.size, strict=True))
        if below == right == 0:
            return image, target
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: self.mask}
        return v2.Pad([0, 0, right, below], fill=fill)(image, target)


@dataclasses.dataclass(frozen=True)
class _Sanitize:
    """Leave out crowds, and objects of which less than a pixel is left.

    A cut object's box is drawn anew around what is left of its mask (`tight`), as detectron2's
    `recompute_boxes` does.
    """

    tight: bool

    def __call__(self, image: tv_tensors.Image, target: Target) -> Item:
        _keep(target := dict(target), target["iscrowd"] == 0)
        if self.tight:
            _keep(target, (target["masks"] != 0).flatten(1).any(1))
            boxes = masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1])
            target["boxes"] = tv_tensors.wrap(boxes, like=target["boxes"])
        return v2.Compose([
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(labels_getter=_per_object),
        ])(image, target)


def _per_object(given: Item) -> list[Tensor]:
    return [given[1][key] for key in ("labels", "iscrowd", "area")]


def _keep(target: Target, kept: Tensor) -> None:
    """Leave out objects, from all that a target says of them; this changes the target."""
    for key in ("boxes", "labels", "iscrowd", "area", "masks"):
        if key in target:
            part = target[key][kept]
            like = isinstance(target[key], tv_tensors.TVTensor)
            target[key] = tv_tensors.wrap(part, like=target[key]) if like else part

"""Object detection and instance segmentation: torchvision's detectors on a timm backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from ..errors import InputError
from ..memory.chunking import declare
from .pyramid import FeatureMaps, SimplePyramid, pyramid

Detector = Literal["fasterrcnn", "maskrcnn", "retinanet", "fcos"]
DETECTORS: tuple[str, ...] = get_args(Detector)
WITH_MASKS = ("maskrcnn",)
BACKGROUND = {"fasterrcnn": 1, "maskrcnn": 1, "retinanet": 0, "fcos": 0}
"""Whether class 0 of a detector is the background, as in torchvision's two-stage detectors."""
SIDE = 1024
"""Side of the images that torchvision's anchors are for, about."""
SMALLEST = 4
"""Least size of an anchor: torchvision rounds its corners to whole pixels."""
DETECTIONS = 100
"""Most detections of an image, as COCO counts them."""

declare((MaskRCNNHeads.__module__,), (MaskRCNNHeads.__name__, MaskRCNNPredictor.__name__))


class Levels(nn.Module):
    """The feature pyramid that a detector reads, by level name.

    Attributes:
        maps: The feature maps of the backbone.
        fpn: Feature Pyramid Network over them (Lin et al. 2017, arXiv:1612.03144), or over the
            simple pyramid, whose levels are of one width already, what makes coarser ones alone.
        out_channels: Channels of each level, where torchvision looks for them.
    """

    def __init__(
        self, maps: FeatureMaps | SimplePyramid, channels: int, coarser: ExtraFPNBlock
    ) -> None:
        """Build the pyramid.

        Args:
            maps: The feature maps of the backbone.
            channels: Channels of each level.
            coarser: Makes the levels behind the last one.
        """
        super().__init__()
        self.maps, self.out_channels = maps, channels
        simple = isinstance(maps, SimplePyramid)
        widths = list(maps.channels)
        self.fpn = coarser if simple else FeaturePyramidNetwork(widths, channels, coarser)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Make the levels.

        Args:
            images: `(B, C, H, W)`.

        Returns:
            Maps `(B, out_channels, H / s, W / s)` by name, finest first.
        """
        maps = self.maps(images)
        names = [str(i) for i in range(len(maps))]
        if isinstance(self.fpn, ExtraFPNBlock):
            maps, names = self.fpn(maps, maps, names)
            return dict(zip(names, maps, strict=True))
        return _fused(self.fpn, maps, names)


def _fused(fpn: FeaturePyramidNetwork, maps: list[Tensor], names: list[str]) -> dict[str, Tensor]:
    """Compute what torchvision's pyramid does, with fewer maps at the finest size at once.

    Returns:
        The levels by name, finest first.
    """
    sources, state = list(maps), None
    levels: list[Tensor] = []
    for inner, layer in zip(reversed(fpn.inner_blocks), reversed(fpn.layer_blocks), strict=True):
        lateral = inner(maps.pop())
        if state is not None:
            lateral += F.interpolate(state, size=lateral.shape[-2:], mode="nearest")
        state = lateral
        levels.insert(0, layer(state))
    if fpn.extra_blocks is not None:
        levels, names = fpn.extra_blocks(levels, sources, names)
    return dict(zip(names, levels, strict=True))


def detector(
    body: nn.Module, classes: int, kind: Detector, size: int, channels: int = 256
) -> nn.Module:
    """Put a detector on a backbone.

    Matching, sampling, losses and thresholds are torchvision's defaults. Anchors are its defaults
    for images of `SIDE` pixels, scaled to the size. Images come normalised and square, so that
    nothing is resized or padded inside.

    Args:
        body: A timm backbone; its classifier is taken off.
        classes: How many classes an object may be of.
        kind: Which detector.
        size: Side of the square images.
        channels: Channels of each level of the pyramid.

    Returns:
        torchvision's model: `(images, targets)` to a mapping of losses in training, and `images`
        to a list of detections in evaluation; labels are counted from `BACKGROUND[kind]`.
    """
    given: dict[str, Any] = {
        "min_size": size,
        "max_size": size,
        "image_mean": [0.0],
        "image_std": [1.0],
        "size_divisible": 1,
        "_skip_resize": True,
    }
    made = MAKERS[kind]
    return made(body, classes + BACKGROUND[kind], channels, size / SIDE, given)


def anchors(scale: float, thirds: bool) -> AnchorGenerator:
    """Make torchvision's anchors, scaled.

    Args:
        scale: What sizes are multiplied by.
        thirds: Whether each level has three sizes, a third of an octave apart, or one.

    Returns:
        Sizes of 32, 64, 128, 256 and 512 pixels times `scale`, `SMALLEST` at least; each 1:2, 1:1
        and 2:1.
    """
    steps = (1, 2 ** (1 / 3), 2 ** (2 / 3)) if thirds else (1,)
    levels: Any = [
        tuple(max(scale * 2**i * step, SMALLEST) for step in steps) for i in range(5, 10)
    ]
    ratios: Any = ((0.5, 1.0, 2.0),) * len(levels)
    return AnchorGenerator(tuple(levels), ratios)


def _two_stages(
    with_masks: bool,
    body: nn.Module,
    classes: int,
    channels: int,
    scale: float,
    given: dict[str, object],
) -> nn.Module:
    """Ren et al. 2015, arXiv:1506.01497, with masks He et al. 2017, arXiv:1703.06870."""
    levels = Levels(pyramid(body, channels, 4), channels, LastLevelMaxPool())
    given = {
        **given,
        "rpn_anchor_generator": anchors(scale, thirds=False),
        "box_head": TwoMLPHead(channels * 7**2, 4 * channels),
        "box_predictor": FastRCNNPredictor(4 * channels, classes),
        "box_detections_per_img": DETECTIONS,
    }
    if not with_masks:
        return FasterRCNN(levels, **given)
    return MaskRCNN(
        levels,
        mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, classes),
        **given,
    )


def _one_stage(
    make: Callable[..., nn.Module],
    body: nn.Module,
    classes: int,
    channels: int,
    scale: float,
    given: dict[str, object],
) -> nn.Module:
    """Lin et al. 2017, arXiv:1708.02002 and Tian et al. 2019, arXiv:1904.01355."""
    levels = Levels(pyramid(body, channels, 8), channels, LastLevelP6P7(channels, channels))
    if make is FCOS:
        if channels % 32:
            raise InputError(f"decoder_channels must be a multiple of 32 for fcos, not {channels}")
        sizes: Any = ((8,), (16,), (32,), (64,), (128,))  # no anchors, but strides
        made = AnchorGenerator(sizes, ((1.0,),) * 5)
    else:
        made = anchors(scale, thirds=True)
    given = {**given, "anchor_generator": made}
    return make(levels, classes, detections_per_img=DETECTIONS, score_thresh=0.05, **given)


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "fasterrcnn": partial(_two_stages, False),
    "maskrcnn": partial(_two_stages, True),
    "retinanet": partial(_one_stage, RetinaNet),
    "fcos": partial(_one_stage, FCOS),
}

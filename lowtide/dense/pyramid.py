"""Feature maps of a timm backbone at the strides that decoders and detectors read."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers import LayerNorm2d, NormMlpClassifierHead
from torch import Tensor, nn

from ..errors import InputError
from ..families import image_shape, meta_copy

STRIDES = (4, 8, 16, 32)
"""Strides of a pyramid, finest first."""
SLACK = 1.5
"""Within what factor a stride is the one said: sides that it does not divide are rounded."""
BODY = "body"
"""Where the timm backbone stands in `FeatureMaps`."""


class FeatureMaps(nn.Module):
    """A timm backbone that gives feature maps instead of class scores.

    The backbone is timm's own class, whole, so that its family's table, its weights file and every
    method apply to it; `forward_intermediates` reads its maps.

    Attributes:
        body: The backbone.
        indices: Which of timm's feature maps are read.
        norm: Whether they pass the backbone's last norm, as those of a plain backbone do.
        channels: Channels of each map.
        strides: Stride of each map, in pixels.
        prefixed: Whether the class token (the first prefix token) is given beside each map.
    """

    def __init__(
        self, body: nn.Module, indices: Sequence[int] | None = None, prefixed: bool = False
    ) -> None:
        """Read the maps of a backbone.

        Args:
            body: A timm model with `forward_intermediates`; its classifier is taken off.
            indices: Which of the maps; by default the last.
            prefixed: Whether to give the class token beside each map.

        Raises:
            InputError: timm gives maps of other strides than it says.
        """
        super().__init__()
        known = strides_of(body)
        wanted = (len(known) - 1,) if indices is None else tuple(indices)
        self.norm = len(set(known)) == 1
        self.prefixed = False
        self.body, self.indices = body, _pruned(body, [i - len(known) for i in wanted], self.norm)
        self.strides, self.channels = self._measured()
        said = tuple(known[i] for i in wanted)
        if any(max(a / b, b / a) > SLACK for a, b in zip(self.strides, said, strict=True)):
            raise InputError(
                f"timm {timm.__version__} gives maps of {type(body).__name__} at strides"
                f" {list(self.strides)} where it says {list(said)}: choose another model"
            )
        self.prefixed = prefixed and bool(getattr(body, "num_prefix_tokens", 0))

    def forward(self, images: Tensor) -> list[Any]:
        """Run the backbone.

        Args:
            images: `(B, C, H, W)`.

        Returns:
            A map `(B, channels[i], H / strides[i], W / strides[i])` of each index; with `prefixed`
            pairs of a map and its prefix tokens `(B, P, channels[i])`.
        """
        given = {"return_prefix_tokens": True} if self.prefixed else {}
        maps: list[Any] = self.body.forward_intermediates(  # type: ignore[operator]
            images,
            indices=list(self.indices),
            intermediates_only=True,
            output_fmt="NCHW",
            norm=self.norm,
            **given,
        )
        return maps

    def _measured(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Strides and channels as one forward on the meta device gives them."""
        image = image_shape(self.body)
        meta = copy.copy(self)
        meta._modules = {BODY: meta_copy(self.body).eval()}
        like = next(self.body.parameters()).dtype
        with torch.no_grad():
            maps = meta(torch.empty(1, *image, device="meta", dtype=like))
        return (
            tuple(round(image[1] / m.shape[-2]) for m in maps),
            tuple(m.shape[1] for m in maps),
        )


class SimplePyramid(nn.Module):
    """The simple feature pyramid of ViTDet: every level from the last map of a plain backbone.

    A map of stride p is brought to each stride s by log2(p / s) deconvolutions of stride 2, each
    halving the channels, with a norm and a GELU between two of them, or by log2(s / p) max pools;
    then a 1 x 1 and a 3 x 3 convolution, each with a norm (Li et al. 2022, arXiv:2203.16527,
    section 3 and detectron2's code). p is a power of two, or the power of two nearest to the
    patch; the map is then resampled to it first.

    Attributes:
        maps: The backbone; gives its last map.
        levels: A module for each stride.
        channels: Channels of each level.
        strides: Stride of each level, in pixels.
    """

    def __init__(self, maps: FeatureMaps, channels: int, first: int = STRIDES[0]) -> None:
        """Build the levels.

        Args:
            maps: The backbone, its last map alone.
            channels: Channels of each level.
            first: Stride of the finest level, at least that of `STRIDES`.
        """
        super().__init__()
        self.maps = maps
        self.strides = tuple(s for s in STRIDES if s >= first)
        self.channels = (channels,) * len(self.strides)
        power = max(0, round(math.log2(maps.strides[-1])))
        self.stride = 2**power
        self.levels = nn.ModuleList(
            _level(maps.channels[-1], channels, power - int(math.log2(s))) for s in self.strides
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Make the pyramid.

        Args:
            images: `(B, C, H, W)`, H and W multiples of 32.

        Returns:
            A map `(B, channels, H / s, W / s)` for each stride s.
        """
        last: Tensor = self.maps(images)[-1]
        size = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        if tuple(last.shape[-2:]) != size:
            last = nn.functional.interpolate(last, size, mode="bilinear", align_corners=False)
        return [level(last) for level in self.levels]


def pyramid(body: nn.Module, channels: int, first: int) -> FeatureMaps | SimplePyramid:
    """Make the feature pyramid of a backbone.

    Args:
        body: A timm backbone.
        channels: Channels of each level, where the pyramid is made of one map.
        first: Stride of the finest level that is read: 2, or one of `STRIDES`.

    Returns:
        The backbone's own stages where it has them, the simple pyramid where all its maps have one
        stride.
    """
    if is_plain(body):
        return SimplePyramid(FeatureMaps(body), channels, first)
    last = {stride: i for i, stride in enumerate(strides_of(body))}
    return FeatureMaps(body, [last[s] for s in (2, *STRIDES) if s in last and s >= first])


def is_plain(body: nn.Module) -> bool:
    """Tell whether all maps of a backbone have one stride, as those of a ViT.

    Args:
        body: A timm backbone.

    Returns:
        Whether they have.
    """
    return len(set(strides_of(body))) == 1


def strides_of(body: nn.Module) -> list[int]:
    """List the strides of the feature maps that timm can give of a backbone.

    Args:
        body: A timm backbone.

    Returns:
        The stride of each map.

    Raises:
        InputError: timm gives no maps, or none of a stride that is read.
    """
    name = type(body).__name__
    info: Any = getattr(body, "feature_info", None)
    if not info or not hasattr(body, "forward_intermediates"):
        raise InputError(
            f"timm gives no feature maps of {name} (no forward_intermediates), which a decoder or a"
            " detector reads: choose another model"
        )
    strides = [int(f["reduction"]) for f in info]
    if len(set(strides)) > 1 and not set(STRIDES) <= set(strides):
        raise InputError(
            f"the feature maps of {name} have strides {sorted(set(strides))}, and a decoder or a"
            f" detector reads {list(STRIDES)}, or any one: choose another model"
        )
    return strides


def _pruned(body: nn.Module, indices: Sequence[int], norm: bool) -> tuple[int, ...]:
    """Take off what no map passes: the classifier, later blocks, and a last norm.

    Args:
        body: Changed in place.
        indices: Maps that are read, counted from the end: ConvNeXt of timm 1.0.15 gives one more
            than it says, the stem's.
        norm: Whether they pass the last norm.

    Returns:
        The same, counted from the first map.
    """
    taken: Sequence[int] = body.prune_intermediate_layers(  # type: ignore[operator]
        list(indices), prune_norm=not norm, prune_head=True
    )
    for head in body.modules():
        if isinstance(head, NormMlpClassifierHead):  # timm 1.0.15 keeps its norm
            head.norm, head.pre_logits = nn.Identity(), nn.Sequential()
    return tuple(taken)


def backbone_path(model: nn.Module) -> str:
    """Find the part of a dense model that methods change.

    Args:
        model: A segmenter or a detector.

    Returns:
        Dotted path of its `FeatureMaps`.
    """
    return next(path for path, m in model.named_modules() if isinstance(m, FeatureMaps))


def _level(width: int, channels: int, doublings: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(doublings):
        layers += [LayerNorm2d(width), nn.GELU()] if i else []
        half = max(width // 2, 1)
        layers.append(nn.ConvTranspose2d(width, half, 2, 2))
        width = half
    layers += [nn.MaxPool2d(2, 2) for _ in range(-doublings)]
    layers += [
        nn.Conv2d(width, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    ]
    return nn.Sequential(*layers)

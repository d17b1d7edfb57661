"""Semantic segmentation: decoders of segmentation_models_pytorch on a timm backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..extras import extra
from .losses import enlarged
from .pyramid import FeatureMaps, is_plain, pyramid, strides_of

Decoder = Literal["unet", "fpn", "upernet", "dpt"]
DECODERS: tuple[str, ...] = get_args(Decoder)
SMP = "segmentation_models_pytorch"
DPT_MAPS = 4
"""Maps that a DPT decoder reads of a plain backbone."""


class Segmenter(nn.Module):
    """Images to a class score of each pixel.

    In training scores are as the decoder gives them, at a stride of up to 4: `segmentation_loss`
    enlarges them, and need not do so with all at once.

    Attributes:
        backbone: The feature maps; gives a list.
        decoder: From those maps to one.
        head: From that map to scores, without enlarging them.
        decode: How the decoder is called on the maps and the images.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: nn.Module,
        head: nn.Module,
        decode: Callable[..., Tensor],
    ) -> None:
        """Join the parts.

        Args:
            backbone: The feature maps.
            decoder: Of segmentation_models_pytorch.
            head: Of segmentation_models_pytorch.
            decode: How the decoder is called.
        """
        super().__init__()
        self.backbone, self.decoder, self.head = backbone, decoder, head
        self.decode = decode

    def forward(self, images: Tensor) -> Tensor:
        """Score every pixel.

        Args:
            images: `(B, C, H, W)`.

        Returns:
            Logits `(B, K, H, W)`; in training `(B, K, h, w)`.
        """
        scores: Tensor = self.head(self.decode(self.decoder, self.backbone(images), images))
        return scores if self.training else enlarged(scores, images.shape[-2:])


def default_decoder(body: nn.Module) -> Decoder:
    """Choose a decoder for a backbone.

    Args:
        body: A timm backbone.

    Returns:
        dpt for a plain one (ViT) of four blocks or more, unet for one with a map of stride 2 (most
        convolutional networks), upernet for the others (Swin, ConvNeXt).
    """
    strides = strides_of(body)
    if is_plain(body) and len(strides) >= DPT_MAPS:
        return "dpt"
    return "unet" if 2 in strides else "upernet"


def segmenter(
    body: nn.Module, classes: int, decoder: Decoder | None = None, channels: int = 256
) -> Segmenter:
    """Put a decoder on a backbone.

    Args:
        body: A timm backbone; its classifier is taken off.
        classes: How many classes a pixel may be of.
        decoder: Which; by default that of `default_decoder`.
        channels: Width of the decoder.

    Returns:
        The model, its backbone as it was given and the rest at random.

    Raises:
        InputError: A DPT decoder is asked for a backbone of several strides.
    """
    kind = decoder or default_decoder(body)
    if kind == "dpt":
        return _dpt(body, classes, channels)
    maps = pyramid(body, channels, 2)
    widths = [0, *([] if 2 in maps.strides else [0]), *maps.channels]
    made, width = MAKERS[kind](widths, channels)
    base = extra(f"{SMP}.base", "dense")
    head = base.SegmentationHead(width, classes, kernel_size=3)
    decode = _of_upernet if kind == "upernet" else _of_pyramid
    return _started(Segmenter(maps, made, head, decode))


def _of_pyramid(decoder: nn.Module, maps: list[Tensor], images: Tensor) -> Tensor:
    """Call a decoder that counts maps from the image itself, stride 1 and 2 included."""
    finest = [images]
    if images.shape[-1] // maps[0].shape[-1] > 2:
        batch, _, height, width = images.shape
        finest.append(images.new_empty(batch, 0, height // 2, width // 2))
    decoded: Tensor = decoder([*finest, *maps])
    return decoded


def _of_upernet(decoder: Any, maps: list[Tensor], images: Tensor) -> Tensor:
    """Compute what UPerNetDecoder does, its last maps fused one by one.

    A convolution of maps side by side is the sum of each one's with its part of the weight, so that
    neither all maps at the finest size nor their gradients exist at once.

    Returns:
        What the decoder gives.
    """
    maps = [norm(m) for norm, m in zip(decoder.feature_norms, maps[-4:], strict=True)]
    convolution, *behind = decoder.fusion_block
    parts = convolution.weight.chunk(len(maps), 1)
    state = decoder.psp(maps.pop())
    size = maps[0].shape[-2:]
    fused = _part(state, parts[-1], size)
    for i, (lateral, block) in enumerate(
        zip(decoder.fpn_lateral_blocks, decoder.fpn_conv_blocks, strict=True), start=2
    ):
        state = lateral(state, maps.pop())
        fused += _part(block(state), parts[-i], size)
    for layer in behind:
        fused = layer(fused)
    return fused


def _part(map_: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
    if map_.shape[-2:] != size:
        map_ = F.interpolate(map_, size, mode="bilinear", align_corners=False)
    return F.conv2d(map_, weight, padding="same")


def _of_pairs(decoder: nn.Module, maps: list[Any], images: Tensor) -> Tensor:
    """Call a DPT decoder, with the prefix tokens of each map where there are some."""
    paired = [m if isinstance(m, tuple | list) else (m, None) for m in maps]
    decoded: Tensor = decoder([m for m, _ in paired], [tokens for _, tokens in paired])
    return decoded


def _unet(widths: list[int], channels: int) -> tuple[nn.Module, int]:
    module = extra(f"{SMP}.decoders.unet.decoder", "dense")
    own = tuple(max(channels >> i, 1) for i in range(5))
    return module.UnetDecoder(widths, own), own[-1]


def _fpn(widths: list[int], channels: int) -> tuple[nn.Module, int]:
    if channels % 64:
        raise InputError(f"decoder_channels must be a multiple of 64 for fpn, not {channels}")
    module = extra(f"{SMP}.decoders.fpn.decoder", "dense")
    made = module.FPNDecoder(widths, pyramid_channels=channels, segmentation_channels=channels // 2)
    return made, made.out_channels


def _upernet(widths: list[int], channels: int) -> tuple[nn.Module, int]:
    module = extra(f"{SMP}.decoders.upernet.decoder", "dense")
    return module.UPerNetDecoder(widths, decoder_channels=channels), channels


MAKERS = {"unet": _unet, "fpn": _fpn, "upernet": _upernet}


def _dpt(body: nn.Module, classes: int, channels: int) -> Segmenter:
    """Ranftl et al. 2021, arXiv:2103.13413: four maps of a plain backbone, the class token read."""
    count = len(strides_of(body))
    if not is_plain(body) or count < DPT_MAPS:
        raise InputError(
            f"decoder dpt reads {DPT_MAPS} maps of one stride, as a ViT's, and"
            f" {type(body).__name__} has no such: expected --decoder {' or '.join(sorted(MAKERS))}"
        )
    indices = [(i + 1) * count // DPT_MAPS - 1 for i in range(DPT_MAPS)]
    maps = FeatureMaps(body, indices, prefixed=True)
    module = extra(f"{SMP}.decoders.dpt.decoder", "dense")
    strides = [2 ** max(0, (s - 1).bit_length()) for s in maps.strides]
    decoder = module.DPTDecoder(
        maps.channels,
        strides,
        maps.prefixed,
        "cat" if maps.prefixed else "ignore",
        tuple(channels << i for i in (0, 1, 2, 2)),
        channels,
    )
    head = module.DPTSegmentationHead(channels, classes, upsampling=1.0)
    return _started(Segmenter(maps, decoder, head, _of_pairs))


def _started(model: Segmenter) -> Segmenter:
    """Draw decoder and head as segmentation_models_pytorch does."""
    if next(model.parameters()).is_meta:
        return model
    start = extra(f"{SMP}.base.initialization", "dense")
    start.initialize_decoder(model.decoder)
    start.initialize_head(model.head)
    return model

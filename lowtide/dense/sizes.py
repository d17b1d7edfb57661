"""Which image sizes a dense model can take."""

from __future__ import annotations

import math

from timm.layers import PatchEmbed
from torch import nn

from ..errors import InputError
from .pyramid import STRIDES, is_plain


def refuse_size(body: nn.Module, size: int, name: str) -> None:
    """Refuse a size whose maps would not be whole at every stride.

    Args:
        body: The backbone, made for it.
        size: Side of the square images.
        name: Of the backbone.

    Raises:
        InputError: The coarsest stride, or the patch, does not divide it.
    """
    step = STRIDES[-1]
    for embed in (m for m in body.modules() if isinstance(m, PatchEmbed) and is_plain(body)):
        step = math.lcm(step, *embed.patch_size)
    if size % step:
        low = size - size % step
        near = f"{low} or {low + step}" if low else f"{step}"
        raise InputError(
            f"image_size must be a multiple of {step} for the maps of {name}, not {size}: give"
            f" --image-size {near}"
        )

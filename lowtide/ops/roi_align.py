"""Regions pooled from a feature map: their gradients are added up where they are computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torchvision  # noqa: F401  (defines the operators)
from torch import Tensor

from ..codecs.base import Codec
from ..codecs.exact import Exact
from .case import Case
from .fan import Fan, begin, gathered, hand
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

PART = 1 << 20
"""Most numbers of the map's gradient that are computed at once."""
_ALIGN = torch.ops.torchvision.roi_align


class Pool(NamedTuple):
    """How regions are pooled.

    Attributes:
        scale: From the units of the regions to the map's.
        height: Rows of a pooled region.
        width: Columns of it.
        samples: Points read in each cell, along each axis; 0 or less for as many as its size asks.
        aligned: Whether pixels are centred at half units.
    """

    scale: float
    height: int
    width: int
    samples: int
    aligned: bool


def _forward(needs: Needs, x: Tensor, *, rois: Tensor, pool: Pool, **_: object) -> Forward:
    # Of x only the shape is looked at in backward.
    return Forward(_ALIGN(x, rois, *pool), (), (x.new_empty(1).expand(x.shape), rois))


def _backward(
    needs: Needs,
    residues: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    pool: Pool,
    fan: Fan | None = None,
    **_: object,
) -> Tensors:
    like, rois = extras
    assert like is not None and rois is not None
    images, channels, *size = like.shape
    step = max(1, PART // max(1, images * size[0] * size[1]))
    dx = begin(fan, like, like.shape)
    for first in range(0, channels, step):
        part = dy[:, first : first + step].contiguous()
        sizes = (images, part.shape[1], *size, pool.samples, pool.aligned)
        dx[:, first : first + step] += torch.ops.torchvision._roi_align_backward(
            part, rois, pool.scale, pool.height, pool.width, *sizes
        )
    return (hand(fan, dx),)


ROI_ALIGN = Op(_forward, _backward)
"""y = means of bilinear samples in the cells of each region (He et al. 2017, arXiv:1703.06870).

No residue. Extras: the regions, as torchvision keeps them. Options: `rois` (K, 5), image and
corners; `pool`; `fan`, where the gradient of x is added up.

Saves:
    Regions. In backward torchvision makes a map for the gradient of each call, and torch adds them:
    here channels of `PART` numbers are added to one.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x, rois, *given = (
        call.argument(i, name)
        for i, name in enumerate((
            *("input", "rois", "spatial_scale", "pooled_height", "pooled_width"),
            *("sampling_ratio", "aligned"),
        ))
    )
    if "roi_align" not in codecs or not x.requires_grad or rois.requires_grad:
        return NotImplemented
    if torch.is_autocast_enabled(x.device.type):
        return NotImplemented  # torchvision's own casts
    alias, fan = gathered(x)
    return saved(ROI_ALIGN, codecs["roi_align"], alias, rois=rois, pool=Pool(*given), fan=fan)


TIGHT: dict[str, Codec] = {"roi_align": Exact()}
CALLS: Calls = {_ALIGN: _answer}
_ROIS = torch.tensor([[0, 0.5, 1, 5, 4], [1, 2, 0, 6, 7], [1, 1, 1, 3, 4]])
_POOL = Pool(0.5, 3, 2, 2, False)
CASES = {
    "roi_align": Case(
        ROI_ALIGN,
        ((2, 3, 6, 5),),
        lambda x: _ALIGN(x, _ROIS.to(x.dtype), *_POOL),
        options={"rois": _ROIS, "pool": _POOL},
        beside=lambda n: 4 + _ROIS.nbytes,
    )
}

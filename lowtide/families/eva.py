"""EVA, EVA-02, DINOv3, the Perception Encoder: ViTs whose attention takes rotary positions.

The positions are given to every block beside the feature map. Class and register tokens stand in
front and are not rotated. Where queries, keys and values have maps of their own these are `linear`,
as are the two maps that a SwiGLU starts with.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from timm.models.eva import Eva, EvaAttention
from torch import Tensor, nn

from ..core.site import Role
from ..errors import Unsupported
from ..versions import classes
from . import vit
from .table import Context

_BLOCK = r"blocks\.\d+"


def _stem(model: nn.Module, x: Tensor) -> Tensor:
    if model.patch_drop is not None:
        raise Unsupported("Eva drops patches; make it with patch_drop_rate=0 to run it in steps")
    x, _ = model._pos_embed(model.patch_embed(x))
    return model.norm_pre(x) if hasattr(model, "norm_pre") else x


def _context(model: Any, size: tuple[int, int]) -> Context:
    if model.rope is None:
        return {}
    if getattr(model, "dynamic_img_size", False):
        grid = model.patch_embed.dynamic_feat_size(size)
    else:
        grid = None if hasattr(model.rope, "feat_shape") else model.patch_embed.grid_size
    rope = model.rope.get_embed(shape=grid) if grid is not None else model.rope.get_embed()
    each = rope if getattr(model, "rope_mixed", False) else [rope] * len(model.blocks)
    return {path: {"rope": each[i]} for i, path in enumerate(vit.FAMILY.chain(model))}


def _extend(
    block: nn.Module, x: Tensor, tokens: Tensor, rope: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Stand the extra tokens behind those in front, rotated by nothing: sine 0 and cosine 1."""
    n = tokens.shape[1]
    if rope is None:
        y = block(torch.cat([tokens, x], 1))
        return y[:, n:], y[:, :n]
    front = x.shape[1] - rope.shape[-2]
    still = rope.new_zeros(*rope.shape[:-2], n, rope.shape[-1])
    still[..., rope.shape[-1] // 2 :] = 1
    x = torch.cat([x[:, :front], tokens, x[:, front:]], 1)
    y = block(x, rope=torch.cat([still, rope], -2))
    return torch.cat([y[:, :front], y[:, front + n :]], 1), y[:, front : front + n]


FAMILY = replace(
    vit.FAMILY,
    name="eva",
    classes=("Eva",),
    roles=(
        *vit.FAMILY.roles,
        (rf"{_BLOCK}\.(attn|mlp)\.norm", Role.NORM),
        (rf"{_BLOCK}\.attn\.([qkv]_proj|gate)|{_BLOCK}\.mlp\.fc1_[gx]", Role.LINEAR),
    ),
    stem=_stem,
    tiny=lambda: Eva(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=2,
        num_classes=10,
        use_rot_pos_emb=True,
        swiglu_mlp=True,
        mlp_ratio=2,
    ),
    extend=_extend,
    context=_context,
    attentions=(EvaAttention, *classes("timm.layers", "AttentionRope")),
    last="",
)

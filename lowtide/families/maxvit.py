"""MaxViT, CoAtNet and their mixtures: convolutions, then attention in windows and over grids.

A block of MaxViT holds a convolution and two attentions. Where a fused projection has queries, keys
and values head by head it is `linear`, for it does not fall into three parts.
"""

from __future__ import annotations

from typing import Any

from timm.layers import RelPosBias, RelPosMlp
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg

from ..core.site import Layout, Role
from .constants import Constant
from .table import Family

_BLOCK = r"stages\.\d+\.blocks\.\d+"
_IN = rf"{_BLOCK}(\.\w+)?"


def _chain(model: Any) -> tuple[str, ...]:
    return tuple(
        f"stages.{i}.blocks.{j}"
        for i, stage in enumerate(model.stages)
        for j in range(len(stage.blocks))
    )


FAMILY = Family(
    name="maxvit",
    classes=("MaxxVit",),
    roles=(
        (r"stem\.conv\d", Role.STEM),
        (_BLOCK, Role.BLOCK),
        (rf"{_IN}\.attn", Role.ATTN),
        (rf"{_IN}\.attn\.qkv", Role.QKV),
        (rf"{_IN}\.attn\.proj", Role.PROJ),
        (rf"{_IN}\.mlp", Role.MLP),
        (rf"{_IN}\.mlp\.fc1", Role.FC1),
        (rf"{_IN}\.mlp\.act", Role.ACT),
        (rf"{_IN}\.mlp\.fc2", Role.FC2),
        (rf"{_IN}\.(shortcut|down)(\.expand)?", Role.DOWN),
        (rf"norm|stem\..+|{_BLOCK}\..+", Role.NORM),
        (rf"{_BLOCK}\..+", Role.CONV),
    ),
    layout=Layout.FIRST,
    stem=lambda model, x: model.stem(x),
    chain=_chain,
    finish=lambda model, x: model.norm(x),
    constants=tuple(
        Constant(kind, "relative_position_index", ("window_size", "prefix_tokens"))
        for kind in (RelPosBias, RelPosMlp)
    ),
    tiny=lambda: MaxxVit(
        MaxxVitCfg(
            embed_dim=(24, 32),
            depths=(2, 2),
            block_type=("M", "M"),
            stem_width=24,
            transformer_cfg=MaxxVitTransformerCfg(
                dim_head=8, head_first=False, window_size=(4, 4), grid_size=(4, 4)
            ),
        ),
        img_size=64,
        num_classes=10,
    ),
)

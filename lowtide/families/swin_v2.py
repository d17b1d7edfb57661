"""Swin Transformer V2: the paths of Swin, norms after each branch, cosine attention."""

from __future__ import annotations

from dataclasses import replace

from timm.models.swin_transformer_v2 import (
    SwinTransformerV2,
    SwinTransformerV2Block,
    WindowAttention,
)

from . import swin

FAMILY = replace(
    swin.FAMILY,
    name="swin_v2",
    classes=("SwinTransformerV2",),
    tiny=lambda: SwinTransformerV2(
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=32,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=10,
    ),
    extend=None,
    halves=None,
    attentions=(WindowAttention,),
    constants=swin.constants(WindowAttention, SwinTransformerV2Block),
)

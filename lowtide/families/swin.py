"""Swin Transformer, versions 1 and 2."""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformer

from ..site import Layout, Role
from .table import Family, staged

_BLOCK = r"layers\.\d+\.blocks\.\d+"


FAMILY = Family(
    name="swin",
    classes=("SwinTransformer", "SwinTransformerV2"),
    roles=(
        (r"patch_embed\.proj", Role.STEM),
        (_BLOCK, Role.BLOCK),
        (rf"{_BLOCK}\.norm[12]|norm|patch_embed\.norm|layers\.\d+\.downsample\.norm", Role.NORM),
        (rf"{_BLOCK}\.attn", Role.ATTN),
        (rf"{_BLOCK}\.attn\.qkv", Role.QKV),
        (rf"{_BLOCK}\.attn\.proj", Role.PROJ),
        (rf"{_BLOCK}\.mlp", Role.MLP),
        (rf"{_BLOCK}\.mlp\.fc1", Role.FC1),
        (rf"{_BLOCK}\.mlp\.act", Role.ACT),
        (rf"{_BLOCK}\.mlp\.fc2", Role.FC2),
        (r"layers\.\d+\.downsample\.reduction", Role.DOWN),
    ),
    layout=Layout.LAST,
    stem=lambda model, x: model.patch_embed(x),
    chain=staged("layers"),
    finish=lambda model, x: model.norm(x),
    tiny=lambda: SwinTransformer(
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=10,
    ),
    last="norm",
)

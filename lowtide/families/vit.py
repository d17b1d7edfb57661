"""Vision Transformer: ViT, DeiT, DeiT-3, DINOv2 and every other timm `VisionTransformer`."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from ..core.site import Layout, Role
from .table import Family


def _stem(model: VisionTransformer, x: Tensor) -> Tensor:
    x = model._pos_embed(model.patch_embed(x))
    return model.norm_pre(model.patch_drop(x))


def _extend(block: nn.Module, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Attention has no order of its own, so where the extra tokens stand makes no difference."""
    n = tokens.shape[1]
    y = block(torch.cat([tokens, x], 1))
    return y[:, n:], y[:, :n]


FAMILY = Family(
    name="vit",
    classes=("VisionTransformer",),
    roles=(
        (r"patch_embed\.proj", Role.STEM),
        (r"blocks\.\d+", Role.BLOCK),
        (r"blocks\.\d+\.norm[12]|norm|norm_pre|fc_norm", Role.NORM),
        (r"blocks\.\d+\.attn", Role.ATTN),
        (r"blocks\.\d+\.attn\.qkv", Role.QKV),
        (r"blocks\.\d+\.attn\.proj", Role.PROJ),
        (r"blocks\.\d+\.mlp", Role.MLP),
        (r"blocks\.\d+\.mlp\.fc1", Role.FC1),
        (r"blocks\.\d+\.mlp\.act", Role.ACT),
        (r"blocks\.\d+\.mlp\.fc2", Role.FC2),
    ),
    layout=Layout.LAST,
    stem=_stem,
    chain=lambda model: tuple(f"blocks.{i}" for i in range(len(model.blocks))),
    finish=lambda model, x: model.norm(x),
    tiny=lambda: VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=10
    ),
    extend=_extend,
    attentions=(Attention,),
    last="norm",
)

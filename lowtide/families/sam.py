"""SAM's image encoder, and ViTDet: a ViT on a grid, attention in windows or over all.

Blocks take and give maps (B, H, W, C). Attention adds a bias that depends on the query and on the
distance, each axis for itself; it has none for a token without a place, so none can be added. The
neck, two convolutions with norms, narrows the map after the blocks; it is no element of the chain,
for its maps are channels first.
"""

from __future__ import annotations

from dataclasses import replace

from timm.layers import resample_abs_pos_embed_nhwc
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor

from ..core.site import Role
from . import vit


def _stem(model: VisionTransformerSAM, x: Tensor) -> Tensor:
    x = model.patch_embed(x)
    if model.pos_embed is not None:
        x = x + resample_abs_pos_embed_nhwc(model.pos_embed, x.shape[1:3])
    return model.norm_pre(model.patch_drop(model.pos_drop(x)))


FAMILY = replace(
    vit.FAMILY,
    name="sam",
    classes=("VisionTransformerSAM",),
    roles=(*vit.FAMILY.roles, (r"neck(\.\d)?", Role.NORM), (r"neck\.\d", Role.CONV)),
    stem=_stem,
    finish=lambda model, x: model.neck(x.permute(0, 3, 1, 2)),
    tiny=lambda: VisionTransformerSAM(
        img_size=32,
        patch_size=4,
        embed_dim=32,
        depth=4,
        num_heads=2,
        num_classes=10,
        neck_chans=24,
        window_size=3,
        use_rel_pos=True,
        global_attn_indexes=(1, 3),
    ),
    extend=None,
    attentions=(),
    last="",
)

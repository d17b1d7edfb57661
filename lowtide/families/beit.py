"""BEiT and BEiT v2: ViTs whose attention adds a bias by relative position.

Where all blocks share one table, the bias it gives is handed to every block. The table has no row
for a token without a place, so the number of tokens is fixed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from timm.models.beit import Attention, Beit
from torch import Tensor

from ..core.site import Role
from . import vit
from .constants import Constant
from .table import Context


def _stem(model: Beit, x: Tensor) -> Tensor:
    x = model.patch_embed(x)
    x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1), x], 1)
    return model.pos_drop(x if model.pos_embed is None else x + model.pos_embed)


def _context(model: Beit, size: tuple[int, int]) -> Context:
    if model.rel_pos_bias is None:
        return {}
    bias = model.rel_pos_bias()
    return {path: {"shared_rel_pos_bias": bias} for path in vit.FAMILY.chain(model)}


FAMILY = replace(
    vit.FAMILY,
    name="beit",
    classes=("Beit",),
    roles=(
        *vit.FAMILY.roles,
        (r"blocks\.\d+\.mlp\.norm", Role.NORM),
        (r"blocks\.\d+\.mlp\.fc1_[gx]", Role.LINEAR),
    ),
    stem=_stem,
    tiny=lambda: Beit(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=2,
        num_classes=10,
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
        init_values=0.1,
    ),
    extend=None,
    context=_context,
    attentions=(Attention,),
    constants=(Constant(Attention, "relative_position_index", ("window_size",)),),
    last="",
)

"""Swin Transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn

from ..core.graft import Graft
from ..core.site import Layout, Role
from ..errors import Unsupported
from .constants import Constant
from .table import Family, staged

_BLOCK = r"layers\.\d+\.blocks\.\d+"


def _extend(module: Any, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    # Every window sees the same extra tokens, and they become the mean of what the windows make of
    # them. Between stages, where four patches become one, a token stands for all four.
    if isinstance(module, PatchMerging):
        return module(x), module.reduction(module.norm(tokens.repeat(1, 1, 4)))
    around_windows, seen = _attend(module, module.norm1(x), module.norm1(tokens))
    x, tokens = x + module.drop_path1(around_windows), tokens + module.drop_path1(seen)
    both = torch.cat([tokens, x.flatten(1, 2)], 1)
    both = both + module.drop_path2(module.mlp(module.norm2(both)))
    n = tokens.shape[1]
    return both[:, n:].unflatten(1, x.shape[1:3]), both[:, :n]


def _halves(block: SwinTransformerBlock, x: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
    x = between(x + block.drop_path1(block._attn(block.norm1(x))))
    y = x.flatten(1, 2)
    return (y + block.drop_path2(block.mlp(block.norm2(y)))).unflatten(1, x.shape[1:3])


def _attend(block: Any, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Attend in shifted windows of `x` (B, H, W, C), the tokens (B, n, C) in front of each."""
    _, height, width, channels = x.shape
    if isinstance(block.attn, Graft):
        raise Unsupported(
            "vpt on a backbone of windows runs inside window attention, and another method stands"
            " around it: choose one of the two"
        )
    (h, w), (down, right), n = block.window_size, block.shift_size, tokens.shape[1]
    x = F.pad(x.roll((-down, -right), (1, 2)), (0, 0, 0, -width % w, 0, -height % h))
    padded = x.shape[1:3]
    mask = block.get_attn_mask(x) if block.dynamic_mask else block.attn_mask
    windows = window_partition(x, (h, w)).flatten(1, 2)
    count = (padded[0] // h) * (padded[1] // w)
    inside = torch.cat([tokens.repeat_interleave(count, 0), windows], 1)
    y = _window_attention(block.attn, inside, mask, n)
    seen = y[:, :n].unflatten(0, (-1, count)).mean(1)
    y = window_reverse(y[:, n:].reshape(-1, h, w, channels), (h, w), *padded)
    return y[:, :height, :width].roll((down, right), (1, 2)), seen


def _window_attention(attn: WindowAttention, x: Tensor, mask: Tensor | None, n: int) -> Tensor:
    """Window attention where the first `n` of the tokens have no place and thus no bias."""
    q, k, v = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    bias = attn._get_rel_pos_bias()
    if mask is not None:
        bias = bias + mask.unsqueeze(1).repeat(x.shape[0] // len(mask), 1, 1, 1)
    y = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=F.pad(bias, (n, 0, n, 0)),
        dropout_p=attn.attn_drop.p if attn.training else 0.0,
    )
    return attn.proj_drop(attn.proj(y.transpose(1, 2).flatten(2)))


def constants(attention: type[nn.Module], block: type[nn.Module]) -> tuple[Constant, Constant]:
    """Describe what each module makes of the sizes of its windows.

    An index says for two places of a window in which row of a table their bias stands: 8 N^2 bytes
    for windows of N places. A mask is 0 or -100 for two places of each of W windows, in float32
    4 W N^2 bytes and here a quarter: at 1024 pixels, where N is 1024, an index takes 8 MiB, and the
    masks of the first stage 64.

    Args:
        attention: The class of the attention modules.
        block: The class of the blocks.

    Returns:
        The index and the mask.
    """
    sizes = ("input_resolution", "window_size", "shift_size")
    return (
        Constant(attention, "relative_position_index", ("window_size",)),
        Constant(block, "attn_mask", sizes, torch.int8),
    )


FAMILY = Family(
    name="swin",
    classes=("SwinTransformer",),
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
    extend=_extend,
    halves=_halves,
    attentions=(WindowAttention,),
    constants=constants(WindowAttention, SwinTransformerBlock),
    last="norm",
)

"""Where attention looks: the class token's attention over patches, on the image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from timm.models import vision_transformer
from torch import Tensor

from ..core.graft import find, root
from ..core.site import Role, Site
from ..errors import InputError, UnknownName, Unsupported
from ..inference.evaluate import Trained
from ..tuning.tuned import Tuned

Kind = Literal["mean", "rollout"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def attention_maps(
    trained: Trained,
    images: Tensor,
    *,
    blocks: Sequence[int] = (-1,),
    kind: Kind = "mean",
    batch_size: int = 32,
) -> Tensor:
    """Compute the class token's attention over the patches.

    With A_b = softmax(q k^T / sqrt(d)) of block b, its mean over heads, `mean` is its class token's
    row, and `rollout` that of

        R_b = (A_b + I) / 2  R_(b-1),   R_(-1) = I       (Abnar & Zuidema 2020, arXiv:2005.00928)

    Computed from the block's own queries and keys, so it is there whether or not attention is
    fused. Tokens that a method adds are left out: what is paid to them ends there. Where there is
    no class token, the mean over the patches' own rows stands for its row.

    Args:
        trained: The model.
        images: Model inputs (n, C, H, W).
        blocks: Which blocks; -1 is the last.
        kind: `mean` of the block's heads, or `rollout` from the image to the block.
        batch_size: Images per forward pass.

    Returns:
        Maps (n, len(blocks), rows, columns) on the patch grid, in float32 on the CPU. Each sums to
        1 less what the class token pays to tokens that are no patches.

    Raises:
        UnknownName: There is no such kind.
    """
    if kind not in KINDS:
        raise UnknownName("kind of attention map", kind, KINDS)
    tuned = trained.tuned
    sites = _sites(tuned)
    chosen = [_block(b, len(sites)) for b in blocks]
    grid = tuned.sites.of(Role.STEM)[0].grid
    rows = _rollout_rows if kind == "rollout" else _rows
    device = next(tuned.parameters()).device
    maps = []
    for batch in images.split(batch_size):
        kept: dict[int, Tensor] = {}
        wanted = range(max(chosen) + 1) if kind == "rollout" else chosen
        with _watched(tuned, {b: sites[b] for b in wanted}, kept.__setitem__), torch.no_grad():
            tuned(batch.to(device))
        own = rows(kept, chosen)
        queries = own[:, :, :1] if _has_class_token(tuned) else own[:, :, sites[0][1].prefix :]
        patches = queries.mean(2)[..., sites[0][1].prefix :]
        maps.append(patches.unflatten(-1, grid).float().cpu())
    return torch.cat(maps)


def _rows(kept: dict[int, Tensor], chosen: Sequence[int]) -> Tensor:
    return torch.stack([kept[b] for b in chosen], 1)


def _rollout_rows(kept: dict[int, Tensor], chosen: Sequence[int]) -> Tensor:
    rolled: dict[int, Tensor] = {}
    for b in range(max(chosen) + 1):
        identity = torch.eye(kept[b].shape[-1]).to(kept[b])
        step = (kept[b] + identity) / 2
        rolled[b] = step @ rolled[b - 1] if b else step
    return _rows(rolled, chosen)


@contextlib.contextmanager
def _watched(
    tuned: Tuned, sites: dict[int, tuple[Site, Site]], note: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Note each block's attention among the backbone's own tokens, mean over heads (B, N, N)."""
    with contextlib.ExitStack() as hooks:
        for b, (attn, qkv) in sites.items():
            module = root(find(tuned.backbone, attn.path))
            read = partial(_read, partial(note, b), module, qkv.tokens)
            hooks.enter_context(find(tuned.backbone, qkv.path).register_forward_hook(read))
        yield


def _read(
    note: Callable[[Tensor], None],
    module: Any,
    own: int,
    projection: Any,
    args: object,
    qkv: Tensor,
) -> None:
    q, k, _ = qkv.unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = module.q_norm(q), module.k_norm(k)
    added = qkv.shape[1] - own  # they stand in front of the backbone's own
    note((q * module.scale @ k.mT).softmax(-1).mean(1)[:, added:, added:])


def _sites(tuned: Tuned) -> list[tuple[Site, Site]]:
    """The attention and its fused projection in every block; refuse a backbone without."""
    attns = tuned.sites.of(Role.ATTN)
    projections = {s.path.rpartition(".")[0]: s for s in tuned.sites.of(Role.QKV)}
    name = type(tuned.backbone).__name__
    if not tuned.blocks:
        why = "no table says where its attention is"
    elif not attns:
        why = "its blocks mix space without attention"
    elif any(p.in_shape[0] > 1 for p in projections.values()):
        why = "its attention stays inside windows, so no token sees the whole image"
    elif any(
        type(root(find(tuned.backbone, a.path))) is not vision_transformer.Attention for a in attns
    ):
        why = "its attention is not softmax(q k^T) alone"
    else:
        return [(a, projections[a.path]) for a in attns]
    raise Unsupported(f"{name} has no attention map over the image: {why}")


def _block(b: int, count: int) -> int:
    if not -count <= b < count:
        raise InputError(f"no block {b}: expected 0 to {count - 1}, or -1 for the last")
    return b % count


def _has_class_token(tuned: Tuned) -> bool:
    return getattr(tuned.backbone, "cls_token", None) is not None

"""Attention inside windows, run in chunks of windows, again in backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.models import swin_transformer, swin_transformer_v2
from torch import Tensor, nn

from ..codecs.base import Codec, Residue
from . import attention_chunks
from .again import Weights
from .attention_chunks import quietly
from .once import once
from .saved import keep
from .spare import unpack

WINDOWED: tuple[type[nn.Module], ...] = (
    swin_transformer.WindowAttention,
    swin_transformer_v2.WindowAttention,
)
"""Modules of (windows, N, C) and a mask (windows of an image, N, N): no window sees another."""

Run = Callable[[Tensor, Tensor | None], Tensor]


def windows_at_once(
    module: nn.Module, kind: type[nn.Module], x: Tensor, mask: Tensor | None
) -> list[slice] | None:
    """Cut the windows of an attention, so that the matrix of a chunk is at most `CHUNK` numbers.

    Args:
        module: Any module.
        kind: What it is.
        x: Its input.
        mask: A mask for each window of an image, or None.

    Returns:
        The windows of each chunk; None if one holds them all, or the module is no such attention,
        or draws noise.
    """
    if kind not in WINDOWED or x.ndim != 3:
        return None
    known: Any = module
    if any(m.training and m.p for m in module.modules() if isinstance(m, nn.Dropout)):
        return None
    most = max(1, attention_chunks.CHUNK // (known.num_heads * x.shape[1] ** 2))
    if most >= len(x):
        return None
    # A chunk holds whole images or a part of one, so that its part of the mask is known.
    image = len(x) if mask is None else len(mask)
    whole = most - most % image if most >= image else image
    step = whole if most >= image else most
    starts = [at for first in range(0, len(x), whole) for at in range(first, first + whole, step)]
    starts = [at for at in starts if at < len(x)]
    return [slice(*ends) for ends in itertools.pairwise((*starts, len(x)))]


def recompute_windows(
    run: Run,
    codec: Codec,
    x: Tensor,
    mask: Tensor | None,
    windows: list[slice],
    weights: Iterable[Tensor],
) -> Tensor:
    """Compute run(x, mask) chunk by chunk; keep of it x alone, and run each once more in backward.

    The forward sees x itself; products of some windows are those of all to the last bit.

    Args:
        run: An attention of windows and their masks.
        codec: How x is kept, unless it follows from something kept already.
        x: All windows (B, N, C).
        mask: A mask for each window of an image (W, N, N), or None.
        windows: Those of each chunk.
        weights: Weights it reads; none may be written to before the backward.

    Returns:
        Its output, (B, N, C).
    """
    weights = list(weights)
    result: Tensor = _Windows.apply(
        run, codec, mask, windows, Weights(weights), x, *(w for w in weights if w.requires_grad)
    )
    return result


class _Windows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        run: Run,
        codec: Codec,
        mask: Tensor | None,
        windows: list[slice],
        held: Weights,
        x: Tensor,
        *trained: Tensor,
    ) -> Tensor:
        kind = "cpu" if x.is_meta else x.device.type
        with torch.autocast(kind, enabled=False):
            ctx.reader, packed = keep(codec, Residue(x))
        ctx.save_for_backward(*packed)
        ctx.run, ctx.mask, ctx.windows, ctx.held, ctx.trained = run, mask, windows, held, trained
        ctx.like = (x.shape, x.dtype, x.requires_grad)
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        with quietly():
            # With a gradient, by which torch chooses its kernels.
            given = x.detach().requires_grad_(x.requires_grad).view_as(x)
            return torch.cat([run(given[at], _part(mask, at)).detach() for at in windows])

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ctx.held.check()
        shape, dtype, wanted = ctx.like
        x = unpack(ctx.reader, ctx.saved_tensors, shape, dtype)
        dx = torch.empty_like(x) if wanted else None
        found: list[Tensor | None] = [None] * len(ctx.trained)
        for at in ctx.windows:
            part = x[at].detach().requires_grad_(wanted)
            of = (*((part,) if wanted else ()), *ctx.trained)
            with torch.enable_grad(), torch.autocast(*ctx.autocast):
                y = ctx.run(part, _part(ctx.mask, at))
            gradients = list(torch.autograd.grad(y, of, dy[at], allow_unused=True))
            del y
            if dx is not None:
                dx[at] = gradients.pop(0)
            for i, gradient in enumerate(gradients):
                before = found[i]
                found[i] = gradient if before is None or gradient is None else before + gradient
        return None, None, None, None, None, dx, *found


def _part(mask: Tensor | None, at: slice) -> Tensor | None:
    """Take the masks of some windows, whole images or a part of one."""
    if mask is None or at.stop - at.start >= len(mask):
        return mask
    first = at.start % len(mask)
    return mask[first : first + at.stop - at.start]

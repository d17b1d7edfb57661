"""Runs MLPs of a block that is recomputed so that nothing inside is kept even then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from timm import layers
from torch import Tensor, nn

from ..codecs.affine import Affine
from ..core.wrapped import plain_kind
from ..ops.attention_chunks import ALIGNED
from ..ops.region import runs_twice
from ..ops.tokens import in_pieces
from ..ops.unread import Unread
from .chunking import cut, is_imagewise, is_tokenwise
from .mode import Answers, silence

PIECE = 1 << 21
"""Numbers of the widest map of a piece, about; but half of the tokens at most."""
TRAINED = PIECE
"""Most numbers of weights that train in an MLP: their gradients are there twice, sum and part."""
ENDS_WITH_FC2: tuple[type[nn.Module], ...] = (layers.Mlp, layers.GluMlp, layers.SwiGLU)
"""MLPs that give what `fc2` gives, dropout aside, which is off where images are treated alone."""
INPUT = Affine(8, 64, stats=torch.bfloat16)
"""How the input is kept, of one block at a time: some of its tokens can be read alone."""


def run_again_in_pieces(
    module: nn.Module,
    mode: Answers,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, object],
) -> Any:
    """Run an MLP of a block that gradient checkpointing recomputes.

    The block's second run keeps the MLP's input alone, and the MLP is run for each piece of tokens
    when its gradient is there. An MLP is the last that most blocks compute, so that it runs no more
    often than if its codes were kept: the second run ends before it.

    Args:
        module: Any module.
        mode: What answers; it is entered.
        forward: The module's own forward.
        args: What it is called on.
        kwargs: The same by name.

    Returns:
        What it gives; `NotImplemented` where the module is no such MLP, or is small, or too much of
        it trains.
    """
    policy = mode.policy
    if policy.chunk is None or not policy.codecs or not runs_twice() or kwargs or len(args) != 1:
        return NotImplemented
    (x,) = args
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.requires_grad or not is_tokenwise(module):
        return NotImplemented
    widths: list[int] = [getattr(m, "out_features", 1) for m in module.modules()]
    tokens = x.shape[:-1].numel()
    half = -(-tokens // (2 * ALIGNED)) * ALIGNED
    sizes = cut(tokens, min(PIECE // max(*widths, x.shape[-1]), half))
    if sizes is None or not is_imagewise(module):
        return NotImplemented
    if sum(p.numel() for p in module.parameters() if p.requires_grad) > TRAINED:
        return NotImplemented

    def run(part: Tensor) -> Tensor:
        with silence():
            result: Tensor = forward(part)
            return result

    def again(part: Tensor) -> Tensor:
        with nullcontext() if last is None else Unread(last):
            return run(part)

    last = _last_weight(module)
    return in_pieces(run, again, sizes, INPUT, x, *module.parameters())


def _last_weight(module: Any) -> nn.Parameter | None:
    """Find the weight of a plain linear map that an MLP ends with, and that no other map has."""
    last = module.fc2 if plain_kind(module) in ENDS_WITH_FC2 else None
    if last is None or plain_kind(last) is not nn.Linear:
        return None
    weight: nn.Parameter = last.packed if hasattr(last, "packed") else last.weight
    users = sum(p is weight for m in module.modules() for p in m._parameters.values())
    return weight if users == 1 else None

"""Run a compressed module by the first rule that applies to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..core.wrapped import plain_kind
from ..ops.attention_decomposed import without_bias
from ..ops.spare import spare
from ..ops.unary import MODULES, activate
from .attention import holds_attention, input_codec, run_from_input, runs_again
from .bands import run_in_bands
from .chunking import run_in_chunks, sizes
from .mode import Answers
from .tokens import run_again_in_pieces


def run_sparing(
    module: nn.Module,
    mode: Answers,
    forward: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> object:
    """Run a module, and drop the codes of tensors that live on in full.

    Args:
        module: Any compressed module.
        mode: What answers; it is entered.
        forward: The module's own forward.
        args: What it is called on.
        kwargs: The same by name.

    Returns:
        What it gives.
    """
    if torch.compiler.is_compiling():  # nothing is watched
        return _run(module, mode, forward, args, kwargs)
    since = len(mode.watched)
    result = _run(module, mode, forward, args, kwargs)
    spare(mode.watched, since, (args, kwargs, result))
    return result


def _run(
    module: nn.Module,
    mode: Answers,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, object],
) -> Any:
    written_out, policy = MODULES.get(plain_kind(module)), mode.policy
    if written_out is not None and not getattr(module, "inplace", False):
        result = activate(written_out, mode.codecs(), forward, *args)
        return forward(*args) if result is NotImplemented else result
    if policy.recompute is not None and holds_attention(module):
        with mode.holding_attention(input_codec(module, policy.recompute)):
            return forward(*args, **kwargs)
    if policy.recompute is not None and runs_again(module, args, kwargs):
        mode.attention()
        return run_from_input(module, mode, forward, args, kwargs)
    if "attention" in mode.codecs():
        if (own := without_bias(module, plain_kind(module), args)) is not None:
            return own(*args, **kwargs)
    if (result := run_in_bands(module, mode, forward, args, kwargs)) is not NotImplemented:
        return result
    if (result := run_again_in_pieces(module, mode, forward, args, kwargs)) is not NotImplemented:
        return result
    if (each := sizes(module, policy.chunk, args, kwargs)) is not None:
        return run_in_chunks(forward, args[0], each)
    return forward(*args, **kwargs)

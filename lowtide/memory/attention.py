"""Attention and recurrent modules: nothing inside is kept, backward starts from their input.

Either queries, keys and values follow from what is kept of the input, and the calls that made them
are made again up to the attention itself; or the whole module runs again. The first is tried where
it may be, and what came of it is noted in the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..codecs.base import Codec, Residue
from ..core.wrapped import plain_kind
from ..ops.again import Derived
from ..ops.attention_chunks import finer
from ..ops.attention_recompute import recompute
from ..ops.attention_windows import recompute_windows, windows_at_once
from ..ops.lineage import derived, remember
from ..ops.region import forgetting, region
from ..ops.saved import keep
from ..versions import classes
from .chunking import is_imagewise
from .mode import Answers, NotDerived, silence
from .state import state_of

RECURRENT: tuple[type[nn.Module], ...] = (nn.LSTM, nn.GRU, nn.RNN)
"""Modules that keep every gate of every step."""

UNSCALED: tuple[type[nn.Module], ...] = classes("timm.models.gemma4_vit", "Gemma4Attention")
"""Attentions whose logits are of normalised q and k and not divided by sqrt(D)."""

_recomputed: set[type[nn.Module]] = {
    nn.MultiheadAttention,
    *UNSCALED,
    *RECURRENT,
}

_X = object()

Forward = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


def declare_attention(kinds: Iterable[type[nn.Module]]) -> None:
    """Declare modules that are cheaper to recompute than to keep.

    Attention makes three tensors of one, and a matrix for each head.

    Args:
        kinds: Their classes; subclasses count as well.
    """
    _recomputed.update(kinds)


def _is_recomputed(module: nn.Module) -> bool:
    return not _recomputed.isdisjoint(type(module).__mro__)


def holds_attention(module: nn.Module) -> bool:
    """Say whether a module contains an attention module that is recomputed.

    Args:
        module: Any module.

    Returns:
        Whether one of its children is.
    """
    # A compiler has its own ways to run something again, and knows none of ours.
    held = map(_is_recomputed, module.children())
    return not torch.compiler.is_compiling() and any(held)


def input_codec(module: nn.Module, codec: Codec) -> Codec:
    """Say how the input of an attention that is run again is kept.

    Args:
        module: The attention, or what holds it.
        codec: How the policy keeps such inputs.

    Returns:
        The same, but for attentions of `UNSCALED`, whose logits are off by sqrt(D) as much, finer.
    """
    within = (module, *module.children())
    unscaled: Any = next((m for m in within if isinstance(m, UNSCALED)), None)
    return codec if unscaled is None else finer(codec, math.sqrt(unscaled.head_dim))


def runs_again(module: nn.Module, args: Args, kwargs: Kwargs) -> bool:
    """Say whether this call recomputes an attention module in backward.

    Args:
        module: Any module.
        args: What it is called on.
        kwargs: The same by name.

    Returns:
        Whether it may be run again from its first argument.
    """
    if torch.compiler.is_compiling() or not _is_recomputed(module) or not args:
        return False
    if not isinstance(args[0], Tensor):  # packed sequences
        return False
    if not (args[0].requires_grad or any(p.requires_grad for p in module.parameters())):
        return False
    given = (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
    others = [t for t in given if t is not args[0]]
    return all(t.is_leaf or not t.requires_grad for t in others)


def run_from_input(
    module: nn.Module, mode: Answers, forward: Forward, args: Args, kwargs: Kwargs
) -> Any:
    """Run an attention or recurrent module so that its backward starts from its input.

    Args:
        module: The module.
        mode: What answers; its policy says how the input is kept.
        forward: The module's own forward.
        args: What it is called on.
        kwargs: The same by name.

    Returns:
        What it gives.
    """
    assert mode.policy.recompute is not None
    codec = input_codec(module, mode.policy.recompute)
    plain_attention = "attention" in mode.policy.codecs and _is_plain(module)
    own = _releasing(module, forward)
    if plain_attention and _may_derive(module, mode, own, args, kwargs):
        noise = _noise(args[0])
        try:
            result = _derived(mode, own, args, kwargs)
            _note(module, True)
            return result
        except NotDerived:  # found out once
            _draw_again(noise)
            _note(module, False)
    # Where the first argument was, and not itself: what runs again must not hold it.
    x, places = args[0], tuple(_X if a is args[0] else a for a in args)
    if (windows := _windows(module, args, kwargs)) is not None:
        return recompute_windows(
            lambda x, mask: _silently(forward, (_X,), {"mask": mask}, x),
            *(codec, x, kwargs.get("mask"), windows, module.parameters()),
        )
    run = partial(_silently, forward, places, kwargs)
    return recompute(run, codec, x, weights=module.parameters())


def _windows(module: nn.Module, args: Args, kwargs: Kwargs) -> list[slice] | None:
    """Say which windows of an attention to run at once, chunk by chunk; None for all of them."""
    if len(args) != 1 or kwargs.keys() - {"mask"} or not all(map(is_imagewise, module.children())):
        return None
    return windows_at_once(module, plain_kind(module), args[0], kwargs.get("mask"))


def _derived(mode: Answers, forward: Forward, args: Args, kwargs: Kwargs) -> Any:
    """Run an attention whose queries, keys and values follow from its input, or raise."""
    x, codec = args[0], mode.policy.recompute
    if codec is not None and derived(x) is None:  # it follows from itself, then
        remember(x, Derived(codec, x.shape, x.dtype), keep(codec, Residue(x))[1])
    with mode.following_products():
        return forward(*args, **kwargs)


def _may_derive(
    module: nn.Module, mode: Answers, forward: Forward, args: Args, kwargs: Kwargs
) -> bool:
    """Say whether an attention's queries, keys and values may follow from its input."""
    # A part under checkpointing must save the same when it is run again, when this is known: it is
    # found out first, where nobody counts what autograd saves.
    if state_of(module).derives is None and mode.region is not None:
        noise = _noise(args[0])
        with torch.autograd.graph.saved_tensors_hooks(_same, _same), forgetting(args):
            try:
                with mode.inside(region()):
                    _derived(mode, forward, args, kwargs)
                _note(module, True)
            except NotDerived:
                _note(module, False)
        _draw_again(noise)
    return state_of(module).derives is not False


def _note(module: nn.Module, derives: bool) -> None:
    module._lowtide_state = replace(state_of(module), derives=derives)  # type: ignore[assignment]


def _noise(x: Tensor) -> list[tuple[torch.Generator, Tensor]]:
    """Note where the generators stand, in case what is tried now has drawn from them in vain."""
    found = [torch.default_generator]
    if x.is_cuda and not torch.cuda.is_current_stream_capturing():
        found.append(torch.cuda.default_generators[x.get_device()])
    return [(g, g.get_state()) for g in found]


def _draw_again(noise: list[tuple[torch.Generator, Tensor]]) -> None:
    for generator, state in noise:
        generator.set_state(state)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _is_plain(module: nn.Module) -> bool:
    """Say whether it hands q, k and v to torch's fused attention as maps and views make them."""
    if not isinstance(module, vision_transformer.Attention) or not module.fused_attn:
        return False
    plain = isinstance(module.q_norm, nn.Identity) and getattr(module, "gate", None) is None
    return plain and not any(m.training and m.p for m in module.modules() if type(m) is nn.Dropout)


def _releasing(module: nn.Module, forward: Forward) -> Forward:
    """Run timm's plain attention by a forward of ours: q, k and v are gone when it projects."""
    own = "forward" not in vars(module) and plain_kind(module) is vision_transformer.Attention
    return partial(_attention, module) if own else forward


def _attention(
    module: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    # What timm computes; q, k and v have no names, which would hold them.
    shape = (*x.shape[:2], 3, module.num_heads, -1)
    attend = partial(F.scaled_dot_product_attention, attn_mask=attn_mask, is_causal=is_causal)
    y: Tensor = attend(*module.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0))
    y = y.transpose(1, 2).flatten(2)
    norm = getattr(module, "norm", None)  # an older timm has none
    result: Tensor = module.proj_drop(module.proj(y if norm is None else norm(y)))
    return result


def _silently(forward: Forward, places: Args, kwargs: Kwargs, x: Tensor) -> Any:
    with silence():
        return forward(*(x if a is _X else a for a in places), **kwargs)

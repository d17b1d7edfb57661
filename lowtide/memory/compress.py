"""Answer a model's torch functions with ones that keep less for the backward pass."""

from __future__ import annotations

import copyreg
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import beit, eva, swin_transformer, swin_transformer_v2, vision_transformer
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from ..codecs.base import Residue
from ..core.wrapped import plain_kind
from ..ops import CALLS, NORMS
from ..ops.attention_decomposed import without_bias
from ..ops.attention_recompute import recompute
from ..ops.attention_windows import recompute_windows, windows_at_once
from ..ops.lineage import FOLLOWED, RUN_AGAIN, Derived, derived, follow, remember
from ..ops.multihead import OPENED
from ..ops.region import Region, forgetting, region
from ..ops.saved import Call, keep
from ..ops.spare import Watched, spare, watching
from ..ops.unary import MODULES, activate
from ..versions import classes
from .chunking import MLPS, by_tokens, has_images, is_imagewise, is_model
from .policy import Policy

ATTENTIONS: tuple[type[nn.Module], ...] = (
    vision_transformer.Attention,
    *classes("timm.layers", "AttentionRope"),
    beit.Attention,
    eva.EvaAttention,
    swin_transformer.WindowAttention,
    swin_transformer_v2.WindowAttention,
    *classes("timm.models.gemma4_vit", "Gemma4Attention"),
    nn.MultiheadAttention,
)
"""Modules that make three tensors of one, and a matrix per head: cheaper to run again than to keep.
"""

RECURRENT: tuple[type[nn.Module], ...] = (nn.LSTM, nn.GRU, nn.RNN)
"""Modules that keep every gate of every step."""

RECOMPUTED = (*ATTENTIONS, *RECURRENT)
"""What is run again in backward, from its input."""

_X = object()
_STATE = {"_lowtide_policy", "_lowtide_derives"}
_answering = threading.local()
_classes: dict[type[nn.Module], type[nn.Module]] = {}


def compress(model: nn.Module, policy: Policy) -> nn.Module:
    """Make a model keep for its backward pass what the policy says; its outputs do not change.

    For the length of each forward a `TorchFunctionMode` answers the functions of the policy's ops.
    No module is replaced: the class of each module that has children becomes a subclass of itself
    that enters the mode, so a block recomputed by gradient checkpointing is answered as well.
    Modules, parameters, `state_dict` keys and `isinstance` stay. Without gradients nothing differs.

    Args:
        model: Any module; changed in place. A policy it had before is replaced.
        policy: What to keep.

    Returns:
        The same object.
    """
    decompress(model)
    if policy == Policy.exact():
        return model
    for module in model.modules():
        leaf = module is not model and not any(True for _ in module.children())
        if not leaf or type(module) in MODULES or type(module) in RECURRENT:
            module.__class__ = _answered(type(module))
            module._lowtide_policy = policy  # type: ignore[assignment]
            module._lowtide_derives = None  # type: ignore[assignment]
    return model


def decompress(model: nn.Module) -> nn.Module:
    """Undo `compress`.

    Args:
        model: Any module; changed in place.

    Returns:
        The same object.
    """
    for module in model.modules():
        if (plain := getattr(type(module), "_lowtide_plain", None)) is not None:
            module.__class__ = plain
            for name in _STATE & vars(module).keys():
                delattr(module, name)
    return model


class _NotDerived(Exception):
    """Queries, keys and values do not follow from the input of their attention module."""


class _Answers(TorchFunctionMode):
    """Answers calls of torch functions for as long as it is entered."""

    def __init__(self, policy: Policy, here: Region) -> None:
        super().__init__()
        self.policy, self.codecs, self.followed = policy, policy.codecs, FOLLOWED
        self.region = here
        self.watched: list[Watched] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self.codecs or not torch.is_grad_enabled() or _silent():
            return func(*args, **kwargs)
        if region() != self.region:  # no module of ours is there when this is run again
            return func(*args, **kwargs)
        if self.followed is RUN_AGAIN and func is F.scaled_dot_product_attention:
            if not all(derived(t) for t in args[:3]):
                raise _NotDerived
        if func in OPENED and not torch.compiler.is_compiling():
            with self:
                return OPENED[func](*args, **kwargs)
        answer, result = CALLS.get(func), NotImplemented
        if answer is not None:
            result = answer(self.codecs, Call(func, args, kwargs))
        if result is NotImplemented:
            result = func(*args, **kwargs)
        # A compiler shares what is kept by itself, and some know no sets of functions.
        followed = not torch.compiler.is_compiling() and func in self.followed
        if followed and result is not (args[0] if args else None):
            follow(func, args, kwargs, result)
        return result

    @contextmanager
    def but(self, **changes: Any) -> Iterator[None]:
        """Answer otherwise inside a module."""
        before = {name: getattr(self, name) for name in changes}
        vars(self).update(changes)
        try:
            yield
        finally:
            vars(self).update(before)


def _silent() -> bool:
    return getattr(_answering, "silent", False)


@contextmanager
def _silence() -> Iterator[None]:
    """Leave everything to torch, in this thread; backward may run in one of its own."""
    before, _answering.silent = _silent(), True
    try:
        yield
    finally:
        _answering.silent = before


def _answered(plain: type[nn.Module]) -> type[nn.Module]:
    """Make, once, the subclass that enters the mode."""
    if plain in _classes:
        return _classes[plain]

    class Answered(plain):  # type: ignore[misc, valid-type]
        _lowtide_plain = plain
        _lowtide_policy: Policy | None = None

        # Trainers, exporters and tracers read from it what the forward takes.
        @wraps(plain.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            policy, before = self._lowtide_policy, getattr(_answering, "mode", None)
            if policy is None or not torch.is_grad_enabled() or _silent() or _traced(args, kwargs):
                return super().forward(*args, **kwargs)
            here = region()
            if before is not None and before.policy is policy and before.region == here:
                return _run_sparing(self, before, super().forward, args, kwargs)
            _answering.mode = mode = _Answers(policy, here)
            inputs = (*args, *kwargs.values()) if here is not None else ()
            try:
                with mode, forgetting(inputs), watching() as mode.watched:
                    return _run_sparing(self, mode, super().forward, args, kwargs)
            finally:
                _answering.mode = before

        def __reduce_ex__(self, protocol: Any) -> Any:
            make, given, *state = super().__reduce_ex__(protocol)
            if make is copyreg.__newobj__:  # type: ignore[attr-defined]
                make, given = _revive, (plain, *given[1:])
            return make, given, *state

    if hasattr(plain, "__getitem__"):

        def __getitem__(self: Any, index: Any) -> Any:
            part: Any = plain.__getitem__(self, index)
            if isinstance(part, Answered) and part._lowtide_policy is None:  # a slice, made anew
                part.__dict__.update({n: v for n, v in vars(self).items() if n in _STATE})
            return part

        Answered.__getitem__ = __getitem__
    Answered.__name__, Answered.__qualname__ = plain.__name__, plain.__qualname__
    Answered.__module__, Answered.__doc__ = plain.__module__, plain.__doc__
    _classes[plain] = Answered
    return Answered


def _traced(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a symbolic tracer asks, which gives names in the place of tensors."""
    return any(isinstance(a, fx.Proxy) for a in (*args, *kwargs.values()))


def _revive(plain: type[nn.Module], *given: Any) -> nn.Module:
    answered = _answered(plain)
    return answered.__new__(answered, *given)


def _run_sparing(
    module: nn.Module,
    mode: _Answers,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a module, and keep no codes of what lives on in full."""
    since = len(mode.watched)
    result = _run(module, mode, forward, args, kwargs)
    spare(mode.watched, since, (args, kwargs, result))
    return result


def _run(
    module: nn.Module,
    mode: _Answers,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    plain, policy = plain_kind(module), mode.policy
    if plain in MODULES and not getattr(module, "inplace", False):
        result = activate(MODULES[plain], mode.codecs, forward, *args)
        return forward(*args) if result is NotImplemented else result
    if policy.recompute is not None and _holds_attention(module):
        finer = dict.fromkeys((name for name in NORMS if name in policy.codecs), policy.recompute)
        with mode.but(codecs={**policy.codecs, **finer}):
            return forward(*args, **kwargs)
    if policy.recompute is not None and _runs_again(module, args, kwargs):
        mode.codecs = policy.codecs  # the norms behind, to the end of the block
        plain_attention = "attention" in mode.codecs and _is_plain(module)
        if plain_attention and _may_derive(module, mode, forward, args, kwargs):
            noise = _noise(args[0])
            try:
                result = _derived(mode, forward, args, kwargs)
                module._lowtide_derives = True  # type: ignore[assignment]
                return result
            except _NotDerived:  # found out once
                _draw_again(noise)
                module._lowtide_derives = False  # type: ignore[assignment]
        # Where the first argument was, and not itself: what runs again must not hold it.
        x, places = args[0], tuple(_X if a is args[0] else a for a in args)
        if (windows := _windows(module, args, kwargs)) is not None:
            return recompute_windows(
                lambda x, mask: _silently(forward, (_X,), {"mask": mask}, x),
                *(policy.recompute, x, kwargs.get("mask"), windows, module.parameters()),
            )
        run = partial(_silently, forward, places, kwargs)
        return recompute(run, policy.recompute, x, weights=module.parameters())
    if "attention" in mode.codecs and (own := without_bias(module, plain, args)) is not None:
        return own(*args, **kwargs)
    sizes = _sizes(module, policy.chunk, args, kwargs)
    if sizes is None:
        return forward(*args, **kwargs)
    # Every chunk has its own autograd nodes, and the backward pass finishes one before the next.
    (x,) = args
    if sum(sizes) == len(x):
        results = [forward(part) for part in x.split(sizes)]
        return tree_map(lambda *parts: torch.cat(parts), *results)
    results = [forward(part) for part in x.flatten(0, -2).split(sizes)]
    return torch.cat(results).unflatten(0, x.shape[:-1])


def _derived(
    mode: _Answers, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Run an attention whose queries, keys and values follow from its input, or raise."""
    x, codec = args[0], mode.policy.recompute
    if codec is not None and derived(x) is None:  # it follows from itself, then
        remember(x, Derived(codec, x.shape, x.dtype), keep(codec, Residue(x))[1])
    with mode.but(followed=RUN_AGAIN):
        return forward(*args, **kwargs)


def _may_derive(
    module: nn.Module,
    mode: _Answers,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> bool:
    """Say whether an attention's queries, keys and values may follow from its input."""
    # A part under checkpointing must save the same when it is run again, when this is known: it is
    # found out first, where nobody counts what autograd saves.
    if module._lowtide_derives is None and mode.region is not None:
        noise = _noise(args[0])
        with torch.autograd.graph.saved_tensors_hooks(_same, _same), forgetting(args):
            try:
                with mode.but(region=region()):
                    _derived(mode, forward, args, kwargs)
                module._lowtide_derives = True
            except _NotDerived:
                module._lowtide_derives = False
        _draw_again(noise)
    return module._lowtide_derives is not False


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


def _silently(
    forward: Callable[..., Any], places: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor
) -> Any:
    with _silence():
        return forward(*(x if a is _X else a for a in places), **kwargs)


def _holds_attention(module: nn.Module) -> bool:
    # A compiler has its own ways to run something again, and knows none of ours.
    held = (isinstance(child, RECOMPUTED) for child in module.children())
    return not torch.compiler.is_compiling() and any(held)


def _runs_again(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Say whether this is one of them with a gradient, to its first argument and weights only."""
    if torch.compiler.is_compiling() or not isinstance(module, RECOMPUTED) or not args:
        return False
    if not isinstance(args[0], Tensor):  # packed sequences
        return False
    if not (args[0].requires_grad or any(p.requires_grad for p in module.parameters())):
        return False
    given = (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
    others = [t for t in given if t is not args[0]]
    return all(t.is_leaf or not t.requires_grad for t in others)


def _windows(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[slice] | None:
    """Say which windows of an attention to run at once, chunk by chunk; None for all of them."""
    if len(args) != 1 or kwargs.keys() - {"mask"} or not all(map(is_imagewise, module.children())):
        return None
    return windows_at_once(module, plain_kind(module), args[0], kwargs.get("mask"))


def _sizes(
    module: nn.Module, chunk: int | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[int] | None:
    """Say how many images of the input, or tokens, to run at once, chunk by chunk; None for all."""
    kind = plain_kind(module)
    if chunk is None or torch.compiler.is_compiling() or len(args) != 1 or kwargs:
        return None
    (x,) = args
    if kind in MLPS:  # wider inside than the model elsewhere
        chunk = max(1, chunk // 2)
    elif not is_model(kind):
        return None
    if not isinstance(x, Tensor) or x.numel() <= chunk or not has_images(module, x):
        return None
    rows = -(-len(x) // min(len(x), -(-x.numel() // chunk)))
    if not is_imagewise(module):
        return None
    if (tokens := by_tokens(module, x, chunk)) is not None:
        return tokens
    count = -(-len(x) // rows)
    return [min(rows, len(x) - i * rows) for i in range(count)] if count > 1 else None

"""The one autograd Function: it joins any op to any codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import NotImplementedType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..codecs.base import Codec, Reader, Residue
from ..codecs.exact import Exact
from .again import Again, Derived, Weights
from .fan import LARGE
from .lineage import derived, remember
from .once import once
from .region import discards, region
from .spare import spared, unpack, watch

SMALL = 16
"""What is so many times smaller than what it follows from, or than what is made of it, is fewer
bytes than work."""

EXACT = Exact()
FINE = 8
"""Bits of a code that is fine enough to make other tensors of."""

Options = Mapping[str, object]
Needs = tuple[bool, ...]
Tensors = tuple[Tensor | None, ...]
Codecs = Mapping[str, Codec]


class Call(NamedTuple):
    """A call of a torch function that a mode has caught.

    Attributes:
        function: The function.
        args: Its arguments by place.
        kwargs: Its arguments by name.
    """

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """Read an argument that may be given by place or by name.

        Args:
            place: Its place.
            name: Its name.
            default: What it is if not given.

        Returns:
            Its value.
        """
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


Result = Tensor | NotImplementedType
"""The result of a call, or `NotImplemented` to leave it to torch."""

Answer = Callable[[Codecs, Call], Result]
"""Gives the result of a call, by the codec of each op."""

Calls = dict[Callable[..., object], Answer]
"""Which torch functions a file of this folder answers."""


class Forward(NamedTuple):
    """The result of an op's forward, and what is kept for its backward.

    Attributes:
        y: The result, computed by torch's own function.
        residues: What the backward needs and a codec may change.
        extras: What it needs as it is: weights, or small tensors.
        again: Gives y from the one residue, where that is cheap: what reads y later then needs
            nothing of its own.
        remake: Gives the last residue of what is kept anyway, which is the thing to do where y
            itself lives on.
        packed: The one residue as its codec packs it, where y came with it.
    """

    y: Tensor
    residues: tuple[Residue, ...] = ()
    extras: Tensors = ()
    again: Callable[[Tensor], Tensor] | None = None
    remake: Callable[[], Tensor] | None = None
    packed: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Op:
    """A differentiable operation as two pure functions.

    Attributes:
        forward: `(needs, *tensors, **options) -> Forward`. `needs` says which tensors want a
            gradient; what only the others need is left out.
        backward: `(needs, residues, extras, dy, **options) -> gradients`, one for each tensor,
            None where there is no need.
        scales: Whether the gradient is dy times the one residue, which some codecs do in one pass.
        coarse: Whether residues that are computed again together may come in bfloat16.
        packed: `(needs, codec, packed, extras, dy, **options) -> gradients` of the one residue as
            it is kept, or `NotImplemented` to have it unpacked for `backward`.
    """

    forward: Callable[..., Forward]
    backward: Callable[..., Tensors]
    scales: bool = False
    coarse: bool = False
    packed: Callable[..., Tensors | NotImplementedType] | None = None


def saved(
    op: Op, codecs: Codec | tuple[Codec, ...], *tensors: Tensor | None, **options: object
) -> Tensor:
    """Run an op and keep its residues by codecs until its backward runs.

    Args:
        op: What to compute.
        codecs: One codec for every residue, or one for each.
        *tensors: Arguments that may need a gradient.
        **options: Everything else the op wants to know.

    Returns:
        The op's result.
    """
    needs = tuple(t is not None and t.requires_grad for t in tensors)
    result: Tensor = _Saved.apply(op, codecs, needs, options, *tensors)
    return result


def keep(
    codec: Codec, residue: Residue, packed: tuple[Tensor, ...] | None = None
) -> tuple[Reader, tuple[Tensor, ...]]:
    """Pack a residue, unless it can be read from what is kept already.

    Two adapters that read one tensor share its bytes, and so do a softmax and the product behind
    it. Of a tensor derived from something kept (see `follow`) nothing is packed, and a weight is
    kept as it is.

    Args:
        codec: How to keep it.
        residue: What to keep.
        packed: Some function of the source, packed already.

    Returns:
        What reads it, and what is kept.
    """
    source = residue.source
    if torch.compiler.is_compiling() or not residue.is_whole():
        packed = _pack(codec, residue) if packed is None else packed
        watch(packed, source, partial(_made, residue.of, residue.beside))
        return codec, packed
    if isinstance(source._base if source._is_view() else source, nn.Parameter):
        return EXACT, (source.detach(),)  # it is there anyway, however small a part this is
    known = derived(source)
    if known is not None and source.numel() * SMALL > known[0].shape.numel():
        if known[0].call.function is None and source.numel() >= LARGE:
            return known[0].codec, known[1]  # of which each reader unpacks some at a time
        known[0].shared.waiting[known[0].call] += 1
        return known
    # Tied to the tensor object, so it ends with it; the version changes if it is written to, and
    # a part that is run again under checkpointing notes for itself.
    memory = source.__dict__.setdefault("_lowtide_kept", {})
    key = (codec, source._version, region())
    if key not in memory:
        memory[key] = _pack(codec, residue)
        watch(memory[key], source, residue.of)
        if getattr(codec, "bits", 0) >= FINE:
            remember(source, Derived(codec, source.shape, source.dtype), memory[key])
    return codec, memory[key]


def _pack(codec: Codec, residue: Residue) -> tuple[Tensor, ...]:
    """Pack a residue; where it is dropped at once, none of its numbers: as many tensors, empty."""
    draws = getattr(codec, "rounding", "nearest") == "stochastic"  # the same noise in both runs
    if torch.compiler.is_compiling() or not discards() or draws:
        return codec.pack(residue)
    return codec.pack(Residue(residue.source.detach().new_empty(0)))


def _made(of: Callable[..., Tensor], beside: tuple[Tensor, ...], source: Tensor) -> Tensor:
    return of(source, *beside)


def codec_kept_by(tensor: Tensor) -> Codec | None:
    """Give the codec that a tensor is kept by already.

    Args:
        tensor: Any tensor.

    Returns:
        The codec, or None.
    """
    if torch.compiler.is_compiling():
        return None
    here, kept = region(), tensor.__dict__.get("_lowtide_kept", ())
    keys = [codec for codec, *when in kept if when == [tensor._version, here]]
    return keys[-1] if keys else None


class _Saved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        op: Op,
        codecs: Codec | tuple[Codec, ...],
        needs: Needs,
        options: Options,
        *tensors: Tensor | None,
    ) -> Tensor:
        y, residues, extras, again, remake, packed = op.forward(needs, *tensors, **options)
        each = codecs if isinstance(codecs, tuple) else (codecs,) * len(residues)
        # Packing has dtypes of its own, which autocast would change or refuse.
        device = "cpu" if y.is_meta else y.device.type  # autocast knows no meta device
        with torch.autocast(device, enabled=False):
            kept = [keep(c, r, packed) for c, r in zip(each, residues, strict=True)]
        ctx.save_for_backward(*(t for _, packed in kept for t in packed), *extras)
        ctx.op, ctx.needs, ctx.options = op, needs, options
        likes = [(r.source.shape, r.source.dtype) for r in residues]
        ctx.kept = [(c, len(p), *like) for (c, p), like in zip(kept, likes, strict=True)]
        ctx.dtypes = [None if t is None else t.dtype for t in tensors]
        y = _own(y, tensors)
        if again is not None and residues and not torch.compiler.is_compiling():
            weights = Weights(t for t in tensors if isinstance(t, nn.Parameter))
            call = Again(again, (Again(),), weights=weights)
            remember(y, Derived(kept[0][0], *likes[0], call), kept[0][1])
        if remake is not None:
            reads = (t for t in tensors if t is not None)
            watch(kept[-1][1], y, lambda _: remake(), reads)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        tensors, residues = ctx.saved_tensors, []
        if ctx.op.scales and hasattr(ctx.kept[0][0], "scale") and not spared(tensors):
            return None, None, None, None, ctx.kept[0][0].scale(tensors, dy)
        if ctx.op.packed is not None and len(ctx.kept) == 1 and not spared(tensors):
            codec, count, *_ = ctx.kept[0]
            given = (ctx.needs, codec, tensors[:count], tensors[count:], dy)
            gradients = ctx.op.packed(*given, **ctx.options)
            if gradients is not NotImplemented:
                return None, None, None, None, *_cast(gradients, ctx.needs, ctx.dtypes)
        shared: dict[Again, object] = {}
        for codec, count, shape, dtype in ctx.kept:
            packed, tensors = tensors[:count], tensors[count:]
            if ctx.op.coarse and isinstance(codec, Derived):
                residues.append(codec.read(packed, shared))
            else:
                residues.append(unpack(codec, packed, shape, dtype))
        shared.clear()
        gradients = ctx.op.backward(ctx.needs, tuple(residues), tensors, dy, **ctx.options)
        return None, None, None, None, *_cast(gradients, ctx.needs, ctx.dtypes)


def _own(y: Tensor, inputs: Tensors) -> Tensor:
    """Give a result that may be written to: no view, in autograd's eyes, and no input's memory."""
    if torch.compiler.is_compiling():
        return y
    memory = y.untyped_storage()._cdata
    if any(t is not None and t.untyped_storage()._cdata == memory for t in inputs):
        return y.clone()
    if not y._is_view():
        return y
    own = y.detach()  # counts the same versions, so that what was kept of y notices a write
    own.__dict__.update(y.__dict__)  # what is known of it
    return own


def _cast(gradients: Tensors, needs: Needs, dtypes: list[torch.dtype]) -> Iterator[Tensor | None]:
    for gradient, need, dtype in zip(gradients, needs, dtypes, strict=True):
        yield None if gradient is None or not need else gradient.to(dtype)

"""Tensors that can be recomputed from something kept already, so keeping them is free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .again import Again, Derived, Function, Weights, each
from .region import Region, region

TINY = 64
"""What is so many times smaller than what it is combined with (a factor per row or channel) is held
as it is."""
_NAME = "_lowtide_derived"


@dataclass(frozen=True, eq=False)
class Lineage:
    """What a tensor can be recomputed from: the calls that made it, and the kept codes they read.

    What is followed: a tensor that an op can make of its one residue, such as a norm's output of
    x^ (`Forward.again`), or whose codes are fine enough; then every result of a function of
    `ops.FOLLOWED`, and of `ops.FOLLOWED_TO_ATTENTION` inside an attention, if each of its tensors
    is followed too and from the same codes, is a weight, or is tiny (`TINY`) and held itself.
    A dropout that draws ends it.

    When it ends: it stands in the tensor object and goes with it. It holds no tensor but codes,
    weights and tiny ones. A write to the tensor ends it (the version changes); a write to a weight
    is an error in backward.

    Regions: it is read in the region it was noted in and nowhere else. A region is a part of the
    forward whose saved tensors a hook takes, as each run of a part under gradient checkpointing is
    (`region.py`): both runs must save the same.

    Shared results: several readers of the same codes share what they compute (`Derived.shared`).
    `keep` counts in `Shared.waiting` how often each call's result is to be read; a reader's turn
    takes one off, and what nobody waits for any more is freed. Within one reading, products and
    what several calls read (`Again.uses`) are computed once.

    Attributes:
        call: The last of the calls.
        reader: Reads what they began with; None if that was weights alone.
        packed: The codes it reads.
        version: Of the tensor.
        region: Where it is valid.
    """

    call: Again
    reader: Derived | None
    packed: tuple[Tensor, ...]
    version: int
    region: Region

    @staticmethod
    def of(tensor: Tensor) -> Lineage | None:
        """Look up what a tensor can be recomputed from.

        Args:
            tensor: Any tensor.

        Returns:
            What is noted and still valid here, or None.
        """
        found: Lineage | None = tensor.__dict__.get(_NAME)
        if found is None or (found.version, found.region) != (tensor._version, region()):
            return None
        return found

    @staticmethod
    def note(
        tensor: Tensor, call: Again, reader: Derived | None, packed: tuple[Tensor, ...]
    ) -> None:
        """Note what a tensor can be recomputed from.

        Args:
            tensor: Any tensor, as it is now.
            call: The call that made it.
            reader: Reads what the calls began with; None if that was weights alone.
            packed: The codes it reads.
        """
        tensor.__dict__[_NAME] = Lineage(call, reader, packed, tensor._version, region())


def remember(tensor: Tensor, reader: Derived, packed: tuple[Tensor, ...]) -> None:
    """Note that a tensor can be recomputed from kept codes.

    Args:
        tensor: Any result; the note ends with the object, or when it is written to.
        reader: Gives it.
        packed: From this.
    """
    Lineage.note(tensor, reader.call, reader, packed)


def derived(tensor: Tensor) -> tuple[Derived, tuple[Tensor, ...]] | None:
    """Look up how a tensor is recomputed from kept codes.

    Args:
        tensor: Any tensor.

    Returns:
        Its reader and what is kept, or None.
    """
    if (found := Lineage.of(tensor)) is None or found.reader is None:
        return None
    return replace(found.reader, call=found.call), found.packed


class _Sources:
    """What the arguments of one call follow from.

    Attributes:
        began: How each that follows is read, and what is kept of it; of a weight, nothing.
        weights: Those among the arguments.
    """

    def __init__(self, most: int) -> None:
        self.most = most  # numbers in the largest argument
        self.began: list[tuple[Derived | None, tuple[Tensor, ...]]] = []
        self.weights: list[Tensor] = []

    def bind(self, a: object) -> object:
        """Give what a later call takes for an argument; refuse one that follows from nothing."""
        if not isinstance(a, Tensor):
            return a
        if isinstance(a, nn.Parameter):
            self.began.append((None, ()))
            self.weights.append(a)
            return a
        found = Lineage.of(a)
        small = a.is_floating_point() and a.numel() * TINY <= self.most
        if small and (found is None or found.reader):
            return a.detach().clone()  # another may write to it
        if found is None:
            raise LookupError
        self.began.append((found.reader, found.packed))
        found.call.uses += 1
        return found.call


def follow(
    function: Function,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: object,
    costly: bool = False,
) -> None:
    """Note of a call's results that they can be recomputed, if its arguments can.

    Args:
        function: The function that was called, one of those to follow.
        args: Its arguments by place; tensors among them all follow from the same, or from weights.
        kwargs: Its arguments by name.
        result: What it gave, a tensor or several.
        costly: Whether it is a matrix product.
    """
    if function is F.dropout and _draws(*args, **kwargs):
        return
    sources = _Sources(max((a.numel() for a in _tensors(args, kwargs)), default=0))
    try:
        # Bound here: the call must not hold a tensor.
        bound = each(sources.bind, args, kwargs)
    except LookupError:
        return
    weights = Weights(sources.weights) if sources.weights else None
    call, began = Again(function, *bound, weights, _casts(result), costly), sources.began
    kept = [b for b in began if b[0] is not None]
    if not began or any(packed is not kept[0][1] for _, packed in kept):
        return
    reader, packed = kept[0] if kept else began[0]
    if isinstance(result, (tuple, list)):
        call.uses += len(result)
        for i, one in enumerate(result):
            Lineage.note(one, Again(_one, (call, i)), reader, packed)
    elif isinstance(result, Tensor) and not isinstance(result, nn.Parameter):
        Lineage.note(result, call, reader, packed)


def pass_on(source: Tensor, target: Tensor) -> None:
    """Note that a tensor was made equal to another one.

    Args:
        source: The other one.
        target: What was written to.
    """
    if not torch.compiler.is_compiling() and (found := Lineage.of(source)) is not None:
        Lineage.note(target, found.call, found.reader, found.packed)


def _casts(result: object) -> tuple[str, torch.dtype] | None:
    """Say what a call's arguments were cast for."""
    kind = result.device.type if isinstance(result, Tensor) else "meta"
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return kind, torch.get_autocast_dtype(kind)


def _tensors(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Iterator[Tensor]:
    for a in (*args, *kwargs.values()):
        yield from (
            t for t in (a if isinstance(a, (tuple, list)) else (a,)) if isinstance(t, Tensor)
        )


def _draws(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> bool:
    """Whether a dropout gives other numbers the next time."""
    return training and p > 0


def _one(several: Sequence[Tensor], i: int) -> Tensor:
    return several[i]

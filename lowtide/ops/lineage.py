"""Tensors that follow from what is kept already, so that keeping them costs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs.base import Reader
from .region import region
from .spare import unpack

Function = Callable[..., Any]

FOLLOWED: set[Function] = {
    *(torch.add, Tensor.add, Tensor.__add__, torch.mul, Tensor.mul, Tensor.__mul__),
    *(torch.sub, Tensor.sub, Tensor.__sub__, torch.div, Tensor.div, Tensor.__truediv__),
    *(torch.addcmul, Tensor.addcmul, torch.pow, Tensor.pow, Tensor.__pow__, torch.square),
    *(Tensor.square, torch.neg, Tensor.neg, Tensor.__neg__, Tensor.__radd__, Tensor.__rmul__),
    *(F.relu, torch.relu, Tensor.relu, Tensor.contiguous, Tensor.float),
    *(torch.flatten, Tensor.flatten, torch.unflatten, Tensor.unflatten, Tensor.__getitem__),
    *(Tensor.view, Tensor.reshape, torch.reshape, torch.permute, Tensor.permute),
    *(Tensor.view_as, Tensor.reshape_as),
    *(torch.transpose, Tensor.transpose, torch.roll, Tensor.roll, F.pad),
    Tensor.mT.__get__,  # type: ignore[attr-defined]
}
"""Functions that cost next to nothing to compute again: views, and one pass over the numbers."""

MAPS: set[Function] = {F.linear, torch.einsum, torch.matmul, Tensor.matmul, Tensor.__matmul__}
"""Functions that cost a matrix product to compute again."""

RUN_AGAIN: set[Function] = {
    *FOLLOWED,
    *MAPS,
    *(torch.cat, torch.stack),
    *(torch.unbind, Tensor.unbind, torch.chunk, Tensor.chunk, torch.split, Tensor.split),
    *(torch.movedim, Tensor.movedim, F.dropout),
    Tensor.T.__get__,  # type: ignore[attr-defined]
}
"""Functions that an attention module makes its queries, keys and values with."""


class Weights:
    """Weights that the backward pass reads again, as they were."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Note their versions.

        Args:
            tensors: The weights.
        """
        self._noted = [(t, t._version) for t in tensors]

    def check(self) -> None:
        """Refuse to go on from others.

        Raises:
            RuntimeError: One was written to since, which torch refuses of what it saved.
        """
        if any(t._version != version for t, version in self._noted):
            raise RuntimeError(
                "a weight was modified by an in-place operation between forward and backward, which"
                " computes with it again; run backward before the optimiser's step"
            )


TINY = 64
"""What is so many times smaller than what it is combined with (a factor per row or channel) is held
as it is."""


@dataclass(eq=False)
class Again:
    """A call to be made again; among its arguments calls stand for what they gave.

    Attributes:
        function: What was called; None stands for what is kept.
        args: Its arguments by place.
        kwargs: Its arguments by name.
        weights: Weights that it reads.
        autocast: The device and dtype that its arguments were cast for, if they were.
        uses: How many calls read its result.
    """

    function: Function | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weights: Weights | None = None
    autocast: tuple[str, torch.dtype] | None = None
    uses: int = 0

    def value(
        self, kept: Callable[[], Tensor], memo: dict[Again, Any], waiting: Container[Again]
    ) -> Any:
        """Compute the result.

        Args:
            kept: Gives what is kept.
            memo: Results of matrix products and what several calls read, so that none is computed
                twice; more are added.
            waiting: Calls whose results are wanted later.

        Returns:
            What the function gave.

        Raises:
            RuntimeError: A weight was written to since.
        """
        if self.weights is not None:
            self.weights.check()
        if self in memo:
            return memo[self]
        if self.function is None:
            result = kept()
        else:
            args, kwargs = _each(
                lambda a: a.value(kept, memo, waiting) if isinstance(a, Again) else a,
                self.args,
                self.kwargs,
            )
            with torch.autocast(*self.autocast) if self.autocast else nullcontext():
                result = self.function(*args, **kwargs)
        if self.function in MAPS or self.uses > 1 or self in waiting:
            memo[self] = result
        return result


@dataclass(eq=False)
class Shared:
    """What readers of one kept tensor share, from the first one's turn to the last one's.

    Attributes:
        waiting: How often each call's result is still to be read.
        memo: Results of those of them that are computed already.
    """

    waiting: Counter[Again] = field(default_factory=Counter)
    memo: dict[Again, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Derived:
    """Reads a tensor off what is kept of another one, by the calls that made it.

    A layer norm keeps x^; what reads its output y = w x^ + b (a trained linear map, SSF's scale,
    an attention's queries, keys and values) gets y from there.

    Attributes:
        codec: How the other one is kept.
        shape: Its shape.
        dtype: Its dtype.
        call: The last of the calls.
        shared: With the other readers.

    Saves:
        Nothing.
    """

    codec: Reader
    shape: torch.Size
    dtype: torch.dtype
    call: Again = field(default_factory=Again)
    shared: Shared = field(default_factory=Shared)

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Unpack the other tensor and make the calls.

        Args:
            packed: What is kept of it.
            shape: Shape of the derived tensor.
            dtype: Its dtype.

        Returns:
            The derived tensor.
        """
        return self.read(packed, {}).to(dtype)

    def read(self, packed: tuple[Tensor, ...], memo: dict[Again, Any]) -> Tensor:
        """Do the same, for several tensors at once.

        Args:
            packed: What is kept of the other tensor.
            memo: What they share; empty at first.

        Returns:
            The derived tensor; in bfloat16 if it is the result of a matrix product, see `coarse`.
        """
        waiting = self.shared.waiting
        if waiting[self.call] > 1:
            waiting[self.call] -= 1
        else:
            del waiting[self.call]
        memo |= self.shared.memo
        with coarse(packed[0].device, self.dtype):
            result: Tensor = self.call.value(
                lambda: unpack(self.codec, packed, self.shape, self.dtype), memo, waiting
            )
        self.shared.memo = {call: memo[call] for call in waiting if call in memo}
        return result


def coarse(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Multiply matrices in bfloat16 where the processor can: what is known in codes is no finer.

    Args:
        device: Where.
        dtype: Of what is multiplied; only float32 is made coarser.

    Returns:
        A context.
    """
    kind = "cpu" if device.type == "meta" else device.type
    wanted = dtype == torch.float32 and multiplies_bfloat16(kind)
    return torch.autocast(kind, torch.bfloat16, enabled=wanted, cache_enabled=False)


def multiplies_bfloat16(device: str) -> bool:
    """Say whether a processor has instructions for products of bfloat16.

    Args:
        device: `cpu` or `cuda`.

    Returns:
        Whether they are faster than those of float32.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()


Note = tuple[Again, Derived | None, tuple[Tensor, ...]]
"""The calls that made a tensor, and what they began with; nothing if that was weights alone."""


def remember(tensor: Tensor, reader: Derived, packed: tuple[Tensor, ...]) -> None:
    """Note that a tensor follows from what is kept.

    Args:
        tensor: Any result; the note ends with the object, or when it is written to.
        reader: Gives it.
        packed: From this.
    """
    _note(tensor, (reader.call, reader, packed))


def derived(tensor: Tensor) -> tuple[Derived, tuple[Tensor, ...]] | None:
    """Look up what a tensor follows from.

    Args:
        tensor: Any tensor.

    Returns:
        Its reader and what is kept, or None.
    """
    if (note := _noted(tensor)) is None or note[1] is None:
        return None
    return replace(note[1], call=note[0]), note[2]


def _note(tensor: Tensor, note: Note) -> None:
    tensor.__dict__["_lowtide_derived"] = (note, tensor._version, region())


def _noted(tensor: Tensor) -> Note | None:
    note, *when = tensor.__dict__.get("_lowtide_derived", (None,))
    return note if when == [tensor._version, region()] else None


def follow(
    function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> None:
    """Carry the note from arguments to results.

    Args:
        function: The function that was called, one of those to follow.
        args: Its arguments by place; tensors among them all follow from the same, or from weights.
        kwargs: Its arguments by name.
        result: What it gave, a tensor or several.
    """
    if function is F.dropout and _draws(*args, **kwargs):
        return
    began: list[tuple[Derived | None, tuple[Tensor, ...]]] = []
    weights: list[Tensor] = []
    most = max((a.numel() for a in _tensors(args, kwargs)), default=0)

    def known(a: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        if isinstance(a, nn.Parameter):
            began.append((None, ()))
            weights.append(a)
            return a
        note = _noted(a)
        if a.is_floating_point() and a.numel() * TINY <= most and (note is None or note[1]):
            return a.detach().clone()  # another may write to it
        if note is None:
            raise LookupError
        began.append(note[1:])
        note[0].uses += 1
        return note[0]

    try:
        # Bound here: the call must not hold a tensor.
        call = Again(
            function,
            *_each(known, args, kwargs),
            Weights(weights) if weights else None,
            _casts(result),
        )
    except LookupError:
        return
    kept = [b for b in began if b[0] is not None]
    if not began or any(packed is not kept[0][1] for _, packed in kept):
        return
    reader, packed = kept[0] if kept else began[0]
    if isinstance(result, (tuple, list)):
        call.uses += len(result)
        for i, one in enumerate(result):
            _note(one, (Again(_one, (call, i)), reader, packed))
    elif isinstance(result, Tensor) and not isinstance(result, nn.Parameter):
        _note(result, (call, reader, packed))


def pass_on(source: Tensor, target: Tensor) -> None:
    """Note that a tensor was made equal to another one.

    Args:
        source: The other one.
        target: What was written to.
    """
    if not torch.compiler.is_compiling() and (note := _noted(source)) is not None:
        _note(target, note)


def _casts(result: Any) -> tuple[str, torch.dtype] | None:
    """Say what a call's arguments were cast for."""
    kind = result.device.type if isinstance(result, Tensor) else "meta"
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return kind, torch.get_autocast_dtype(kind)


def _each(
    change: Callable[[Any], Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Change every argument of a call; torch's functions take tensors alone or in one sequence."""

    def inside(a: Any) -> Any:
        return tuple(map(change, a)) if isinstance(a, (tuple, list)) else change(a)

    return tuple(inside(a) for a in args), {name: inside(a) for name, a in kwargs.items()}


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for a in (*args, *kwargs.values()):
        yield from (
            t for t in (a if isinstance(a, (tuple, list)) else (a,)) if isinstance(t, Tensor)
        )


def _draws(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> bool:
    """Whether a dropout gives other numbers the next time."""
    return training and p > 0


def _one(several: Any, i: int) -> Any:
    return several[i]

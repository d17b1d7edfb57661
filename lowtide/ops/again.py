"""Calls that are repeated in backward, and tensors that are read by repeating them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..codecs.base import Reader
from .fan import LARGE
from .spare import unpack

Function = Callable[..., object]


class Weights:
    """Weights that the backward pass reads again, checked to be unchanged."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Note their versions.

        Args:
            tensors: The weights.
        """
        self._noted = [(t, t._version) for t in tensors]

    def check(self) -> None:
        """Refuse weights that were written to since.

        Raises:
            RuntimeError: One was written to since, which torch refuses of what it saved.
        """
        if any(t._version != version for t, version in self._noted):
            raise RuntimeError(
                "a weight was modified by an in-place operation between forward and backward, which"
                " computes with it again; run backward before the optimiser's step"
            )


@dataclass(eq=False)
class Again:
    """A call to repeat in backward; arguments that are calls stand for their results.

    Attributes:
        function: What was called; None stands for what is kept.
        args: Its arguments by place.
        kwargs: Its arguments by name.
        weights: Weights that it reads.
        autocast: The device and dtype that its arguments were cast for, if they were.
        costly: Whether it is a matrix product, computed no more often than it must be.
        uses: How many calls read its result.
    """

    function: Function | None = None
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)
    weights: Weights | None = None
    autocast: tuple[str, torch.dtype] | None = None
    costly: bool = False
    uses: int = 0

    def is_worth(self, result: object) -> bool:
        """Say whether a result is worth its bytes until its next reader.

        Args:
            result: What the call gave.

        Returns:
            Whether it takes a matrix product, or is small.
        """
        return self.multiplies or not (isinstance(result, Tensor) and result.numel() >= LARGE)

    @property
    def multiplies(self) -> bool:
        """Whether a matrix product is among the calls."""
        given = tree_leaves((self.args, dict(self.kwargs)))
        return self.costly or any(a.multiplies for a in given if isinstance(a, Again))

    def value(
        self, kept: Callable[[], Tensor], memo: dict[Again, object], waiting: Container[Again]
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
            result: object = kept()
        else:
            args, kwargs = each(
                lambda a: a.value(kept, memo, waiting) if isinstance(a, Again) else a,
                self.args,
                self.kwargs,
            )
            with torch.autocast(*self.autocast) if self.autocast else nullcontext():
                result = self.function(*args, **kwargs)
        if self.costly or self.uses > 1 or self in waiting:
            memo[self] = result
        return result


@dataclass(eq=False)
class Shared:
    """Results that several readers of one kept tensor share.

    Attributes:
        waiting: How often each call's result is still to be read.
        memo: Results of those of them that are computed already.
    """

    waiting: Counter[Again] = field(default_factory=Counter)
    memo: dict[Again, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Derived:
    """Reads a tensor by repeating, from a kept tensor, the calls that made it.

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

    def read(self, packed: tuple[Tensor, ...], memo: dict[Again, object]) -> Tensor:
        """Unpack the other tensor and make the calls, for several tensors at once.

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
        self.shared.memo = {c: memo[c] for c in waiting if c in memo and c.is_worth(memo[c])}
        return result


def coarse(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Multiply matrices in bfloat16 where the processor can: codes are no finer.

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


def each(
    change: Callable[[object], object], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Change every argument of a call; torch's functions take tensors alone or in one sequence.

    Args:
        change: Gives an argument's place to something else, or to itself.
        args: Arguments by place.
        kwargs: Arguments by name.

    Returns:
        The changed ones, by place and by name.
    """

    def inside(a: object) -> object:
        return tuple(map(change, a)) if isinstance(a, (tuple, list)) else change(a)

    return tuple(inside(a) for a in args), {name: inside(a) for name, a in kwargs.items()}

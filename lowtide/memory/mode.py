"""The mode that answers torch functions while a compressed model runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..codecs.base import Codec
from ..ops import CALLS, FOLLOWED, FOLLOWED_TO_ATTENTION, NORMS, PRODUCTS
from ..ops.lineage import derived, follow
from ..ops.multihead import OPENED
from ..ops.region import Region, region
from ..ops.saved import Call, Codecs
from ..ops.spare import Watched
from .policy import Policy

_here = threading.local()


class NotDerived(Exception):
    """Queries, keys and values do not follow from the input of their attention module."""


@dataclass
class Block:
    """A module that holds an attention, while it runs.

    Attributes:
        codecs: Those of the policy, the norms' kept as the input of the attention is.
        ahead: Whether its attention is still to come: norms behind it are kept as everywhere.
    """

    codecs: Codecs
    ahead: bool = True


class Answers(TorchFunctionMode):
    """Answers calls of torch functions for as long as it is entered.

    A call with a gradient, of a function that an op answers and the policy has a codec for, is the
    op's; all others are torch's. What a result follows from is noted either way.
    """

    def __init__(self, policy: Policy, here: Region) -> None:
        super().__init__()
        self.policy = policy
        self.region = here
        self.to_attention = False
        self.block: Block | None = None
        self.watched: list[Watched] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if not self.policy.codecs or not torch.is_grad_enabled() or silent():
            return func(*args, **kwargs)
        if region() != self.region:  # no module of ours is there when this is run again
            return func(*args, **kwargs)
        if self.to_attention and func is F.scaled_dot_product_attention:
            if not all(derived(t) for t in args[:3]):
                raise NotDerived
        if func in OPENED and not torch.compiler.is_compiling():
            with self:
                return OPENED[func](*args, **kwargs)
        answer = CALLS.get(func)
        result: object = NotImplemented
        if answer is not None:
            result = answer(self.codecs(), Call(func, args, kwargs))
        if result is NotImplemented:
            result = func(*args, **kwargs)
        # A compiler shares what is kept by itself, and some know no sets of functions.
        followed = not torch.compiler.is_compiling() and func in self._followed()
        if followed and result is not (args[0] if args else None):
            follow(func, args, kwargs, result, costly=func in PRODUCTS)
        return result

    def _followed(self) -> frozenset[Callable[..., object]]:
        return FOLLOWED_TO_ATTENTION if self.to_attention else FOLLOWED

    def codecs(self) -> Codecs:
        """Give the codec of each op, in the block that runs now.

        Returns:
            A codec for each op.
        """
        block = self.block
        return block.codecs if block is not None and block.ahead else self.policy.codecs

    def holding_attention(self, finer: Codec) -> AbstractContextManager[None]:
        """Run a module that holds an attention; norms in front of it are kept finely.

        Args:
            finer: How.

        Returns:
            A context.
        """
        codecs = self.policy.codecs
        norms = {name: finer for name in NORMS if name in codecs}
        return self._but(block=Block({**codecs, **norms}))

    def attention(self) -> None:
        """Note that the attention of the innermost block is reached: its norms are all kept."""
        if self.block is not None:
            self.block.ahead = False

    def following_products(self) -> AbstractContextManager[None]:
        """Follow matrix products too, and raise `NotDerived` at an attention not reached so.

        Returns:
            A context.
        """
        return self._but(to_attention=True)

    def inside(self, here: Region) -> AbstractContextManager[None]:
        """Answer in another region.

        Args:
            here: The region.

        Returns:
            A context.
        """
        return self._but(region=here)

    @contextmanager
    def _but(self, **changes: object) -> Iterator[None]:
        before = {name: getattr(self, name) for name in changes}
        vars(self).update(changes)
        try:
            yield
        finally:
            vars(self).update(before)


def current() -> Answers | None:
    """Find the mode that answers in this thread.

    Returns:
        The mode, or None.
    """
    return getattr(_here, "mode", None)


def put(mode: Answers | None) -> None:
    """Set this thread's mode; the caller puts the one before it back.

    No context manager, in which a compiler cannot see a mode entered.

    Args:
        mode: The mode, or None.
    """
    _here.mode = mode


def silent() -> bool:
    """Say whether this thread leaves every call to torch.

    Returns:
        Whether it is.
    """
    return getattr(_here, "silent", False)


@contextmanager
def silence() -> Iterator[None]:
    """Leave every call to torch, in this thread; backward may run in one of its own.

    Yields:
        Nothing.
    """
    before, _here.silent = silent(), True
    try:
        yield
    finally:
        _here.silent = before

"""Loops over many pieces of one shape, of which a plan watches three."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Protocol, TypeVar

T = TypeVar("T")
_here = threading.local()


class Watch(Protocol):
    """What watches the steps of a loop on tensors without storage."""

    def mark(self) -> object:
        """Note where a step begins."""

    def repeat(self, times: int, since: object) -> None:
        """Count the step that began at a mark so many times more."""


@contextmanager
def watching_three(watch: Watch) -> Iterator[None]:
    """Let loops take three steps of each run of equal ones, while nothing is computed.

    Args:
        watch: Is told how many steps are left out.

    Yields:
        Nothing.
    """
    before, _here.watch = getattr(_here, "watch", None), watch
    try:
        yield
    finally:
        _here.watch = before


def alike(pieces: Iterable[T], shape: Callable[[T], object]) -> Iterator[T]:
    """Give the pieces of a loop; to a plan, of those that follow each other alike three.

    The first step makes what stays until the end of the loop, and leaves its names behind; the
    second finds what each later one finds; the last may end something. So a loop may do so whose
    steps keep nothing of their own: they add up, or write to a part of what is there.

    Args:
        pieces: One for each step.
        shape: Gives of a piece all that the sizes in its step depend on.

    Yields:
        The pieces, in order.
    """
    watch: Watch | None = getattr(_here, "watch", None)
    if watch is None:
        yield from pieces
        return
    for _, run in groupby(pieces, shape):
        first, *rest = run
        yield first
        if len(rest) > 1:
            began = watch.mark()
            yield rest[0]
            watch.repeat(len(rest) - 2, began)
        yield from rest[-1:]

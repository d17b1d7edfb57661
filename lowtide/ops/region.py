"""Parts of a forward pass whose saved tensors go to a hook, as under gradient checkpointing."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

NOTES = ("_lowtide_kept", "_lowtide_derived")
"""What a tensor carries of itself: how it is kept, and what it follows from."""

Region = weakref.ref[object] | None
_here = threading.local()


@contextmanager
def discarding() -> Iterator[None]:
    """Run a part whose saved tensors are dropped at once, as they are saved again in backward.

    Yields:
        Nothing.
    """
    with _said("discards"), running_twice():
        yield


@contextmanager
def running_twice() -> Iterator[None]:
    """Run a part for the first time, or again in backward.

    Yields:
        Nothing.
    """
    with _said("twice"):
        yield


@contextmanager
def _said(name: str) -> Iterator[None]:
    """Hold something true in this thread."""
    before = getattr(_here, name, False)
    setattr(_here, name, True)
    try:
        yield
    finally:
        setattr(_here, name, before)


def discards() -> bool:
    """Say whether what autograd saves here is dropped, and needs no numbers.

    Returns:
        Whether this is the first of two runs, and nobody compares what they save.
    """
    return getattr(_here, "discards", False)


def runs_twice() -> bool:
    """Say whether this part runs twice, and its weights are known not to change in between.

    The second run ends where the last tensor is saved that the first has saved: what only makes
    the result is not computed again.

    Returns:
        Whether it is one of the two runs.
    """
    return getattr(_here, "twice", False)


def region() -> Region:
    """Identify the part of the forward pass that runs now.

    Gradient checkpointing runs a part twice, and counts what autograd saves in each run. Nothing
    that one run has noted of a tensor may therefore be read in the other, nor outside of both.

    Returns:
        A reference to the hook that saved tensors are given to; None where autograd keeps them,
        though somebody may look, as the planner's meter does. Two are equal if they name the same
        part.
    """
    if torch.compiler.is_compiling():
        return None
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if not hooks or getattr(getattr(hooks[0], "__self__", None), "only_looks", False):
        return None
    return weakref.ref(hooks[0])


@contextmanager
def forgetting(inputs: Iterable[object]) -> Iterator[None]:
    """Restore the notes on tensors after a block, and drop those made inside.

    Args:
        inputs: Arguments of a region, which live longer than it.

    Yields:
        Nothing.
    """
    before = [
        (t, {name: t.__dict__[name] for name in NOTES if name in t.__dict__})
        for t in inputs
        if isinstance(t, Tensor)
    ]
    for _, notes in before:
        if "_lowtide_kept" in notes:
            notes["_lowtide_kept"] = dict(notes["_lowtide_kept"])
    try:
        yield
    finally:
        for t, notes in before:
            for name in NOTES:
                t.__dict__.pop(name, None)
            t.__dict__.update(notes)

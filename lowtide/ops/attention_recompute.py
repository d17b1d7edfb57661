"""Run a part of a model again in backward, from its input as a codec keeps it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..codecs.base import Codec, Residue
from .again import Weights
from .region import discarding, running_twice
from .saved import EXACT, keep
from .spare import unpack


def recompute(
    run: Callable[..., object],
    codec: Codec,
    *tensors: Tensor,
    weights: Iterable[Tensor] = (),
    again: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> object:
    """Compute run(*tensors); keep the tensors alone, by a codec, and run once more in backward.

    The forward sees the tensors themselves, so the result is exact; the backward is that of `run`
    at what the codec gives back. Dropout draws the same noise again.

    Args:
        run: A part of a model; the same operations in both runs.
        codec: How a tensor is kept, unless it follows from something kept already, as the output of
            a layer norm does: then it costs nothing. What is no floating-point number is kept as it
            is.
        *tensors: Its inputs.
        weights: Weights it reads; none may be written to before the backward.
        again: What is entered for the second run.

    Returns:
        Its output.
    """
    held, given = Weights(weights), list(tensors)
    kept = [keep(codec if t.is_floating_point() else EXACT, Residue(t)) for t in tensors]
    likes = [(t.shape, t.dtype, t.requires_grad) for t in tensors]
    del tensors

    def once_or_again(*packed: Tensor) -> object:
        if given:
            # Aliases, which carry no note of what they follow from: the second run has none.
            once = [t.view_as(t) for t in given]
            given.clear()
            with discarding():
                return run(*once)
        held.check()
        read, rest = [], iter(packed)
        for (reader, codes), (shape, dtype, wanted) in zip(counts, likes, strict=True):
            with torch.no_grad():
                x = unpack(reader, tuple(itertools.islice(rest, codes)), shape, dtype)
            # A view, as in the first run: a leaf would pass for a weight.
            read.append(x.requires_grad_(wanted).view_as(x))
        with running_twice():
            return run(*read)

    counts = [(reader, len(packed)) for reader, packed in kept]
    packed = [t for _, several in kept for t in several]
    del kept
    # The tensors that both runs save are as many, and differ: the first run's are empty.
    return checkpoint(
        once_or_again,
        *packed,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), again()),
        determinism_check="none",
    )

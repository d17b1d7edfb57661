"""Run a part of a model again in backward, from its input as a codec keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..codecs.base import Codec, Residue
from .lineage import Weights
from .saved import keep
from .spare import unpack


def recompute(
    run: Callable[[Tensor], Tensor], codec: Codec, x: Tensor, weights: Iterable[Tensor] = ()
) -> Tensor:
    """Compute run(x); keep of it x alone, by a codec, and run once more in backward.

    The forward sees x itself, so the result is exact; the backward is that of `run` at what the
    codec gives back. Dropout draws the same noise again.

    Args:
        run: A part of a model; the same operations in both runs.
        codec: How x is kept, unless it follows from something kept already, as the output of a
            layer norm does: then it costs nothing.
        x: Its input.
        weights: Weights it reads; none may be written to before the backward.

    Returns:
        Its output.
    """
    held = Weights(weights)
    reader, packed = keep(codec, Residue(x))
    shape, dtype, wanted, given = x.shape, x.dtype, x.requires_grad, [x]
    del x

    def once_or_again(*kept: Tensor) -> Tensor:
        if given:
            # An alias, which carries no note of what it follows from: the second run has none.
            once = given.pop()
            return run(once.view_as(once))
        held.check()
        with torch.no_grad():
            x = unpack(reader, kept, shape, dtype)
        return run(x.requires_grad_(wanted))

    result: Tensor = checkpoint(once_or_again, *packed, use_reentrant=False)
    return result

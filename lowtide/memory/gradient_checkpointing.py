"""Gradient checkpointing of one block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(run: Callable[..., Any], block: nn.Module, *inputs: Tensor) -> Any:
    """Run a block now and, instead of keeping its activations, once more in backward.

    Differs:
        Plain checkpointing shows every batch to moving BatchNorm statistics twice; here the second
        run leaves them alone.

    Args:
        run: Runs the block.
        block: The block.
        *inputs: What it is run on, the only activations kept.

    Returns:
        What `run` gives.
    """
    moving = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    moving = [m for m in moving if m.track_running_stats]
    if not moving:  # torch.compile takes no context_fn
        return checkpoint(run, *inputs, use_reentrant=False)
    return checkpoint(
        run,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _still(moving)),
    )


@contextlib.contextmanager
def _still(norms: list[_BatchNorm]) -> Iterator[None]:
    """Hold statistics where they are; what autograd keeps stays the same, so they stay passed."""
    before = [(m, m.momentum, m._buffers["num_batches_tracked"]) for m in norms]
    for m, _, count in before:
        m.momentum = 0.0
        m._buffers["num_batches_tracked"] = None if count is None else count.clone()
    try:
        yield
    finally:
        for m, momentum, count in before:
            m.momentum, m._buffers["num_batches_tracked"] = momentum, count

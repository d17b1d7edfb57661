"""Gradient checkpointing of one block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from ..ops.attention_recompute import recompute as recompute_from
from ..ops.saved import EXACT
from .state import state_of


def recompute(run: Callable[..., object], block: nn.Module, *args: object, **kwargs: Any) -> Any:
    """Run a block now and, instead of keeping its activations, once more in backward.

    Of the block its inputs are kept: exactly, or by the codec of the policy it is compressed with
    (`Policy.block`). The first run sees the inputs themselves, so outputs do not change.

    Differs:
        Plain checkpointing shows every batch to moving BatchNorm statistics twice; here the second
        run leaves them alone.

    Args:
        run: Runs the block.
        block: The block.
        *args: What it is run on.
        **kwargs: The same by name. Parameters, and what wants no gradient and is not the first
            tensor, such as a mask or rotary positions, are shared by blocks and kept as they are.

    Returns:
        What `run` gives.

    Saves:
        The inputs, as the codec keeps them.
    """
    leaves, form = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    reads = (*(leaves[i] for i in places), *block.parameters())
    if not any(t.requires_grad for t in reads):  # nothing is kept anyway
        return run(*args, **kwargs)
    moving = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    moving = [m for m in moving if m.track_running_stats]
    if torch.compiler.is_compiling():  # it has its own ways to run something again, and no codes
        hold: Any = {}
        if moving:
            hold["context_fn"] = lambda: (contextlib.nullcontext(), _still(moving))
        return checkpoint(run, *args, use_reentrant=False, **hold, **kwargs)
    carried = [i for i in places[:1] if not _is_weight(leaves[i])]
    carried += [i for i in places[1:] if leaves[i].requires_grad and not _is_weight(leaves[i])]
    given = [leaves[i] for i in carried]
    for i in carried:
        leaves[i] = None

    def once_or_again(*tensors: Tensor) -> object:
        full = list(leaves)
        for i, t in zip(carried, tensors, strict=True):
            full[i] = t
        args, kwargs = tree_unflatten(full, form)
        return run(*args, **kwargs)

    policy = state_of(block).policy
    codec = EXACT if policy is None or policy.block is None else policy.block
    weights = block.parameters()
    return recompute_from(
        once_or_again, codec, *given, weights=weights, again=lambda: _still(moving)
    )


def _is_weight(t: Tensor) -> bool:
    """Whether it is a parameter, seen in one way or another."""
    return isinstance(t._base if t._is_view() else t, nn.Parameter)


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

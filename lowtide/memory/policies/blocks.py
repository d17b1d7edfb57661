"""Inputs of blocks alone."""

from __future__ import annotations

from ..policy import CHUNK, RESIDUAL, Policy


def policy() -> Policy:
    """Keep each block's input alone, in 7 bits, and recompute the block in backward.

    Within a block everything is left to torch, so that only the inputs are rounded; what torch
    keeps there exists for one block and one chunk of images at a time.

    Returns:
        The policy; it takes gradient checkpointing.
    """
    return Policy(chunk=CHUNK, block=RESIDUAL)

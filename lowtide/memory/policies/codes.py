"""Codes of everything, and nothing computed twice."""

from __future__ import annotations

from ...ops import TIGHT
from ..policy import RESIDUAL, Policy


def policy() -> Policy:
    """Keep what each op says of itself, compute no product again, and run batches whole.

    `tight` makes an attention's queries, keys and values anew in backward, of the codes of the norm
    before it, and runs some images at a time: least memory, more and smaller kernels. Here queries,
    keys and values have codes of their own, 4.5 bits a number, for devices that are fast at
    products and slow at starting them.

    Returns:
        The policy.
    """
    return Policy(dict(TIGHT), block=RESIDUAL)

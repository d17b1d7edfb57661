"""Keep the fewest bytes that leave the gradient close."""

from __future__ import annotations

import torch

from ...codecs.affine import Affine
from ...ops import TIGHT
from ..policy import CHUNK, RESIDUAL, Policy


def policy() -> Policy:
    """Keep the fewest bytes that leave the gradient close: what each op's `TIGHT` says.

    Returns:
        The policy.
    """
    rows = Affine(6, 128, stats=torch.bfloat16)
    return Policy(dict(TIGHT), chunk=CHUNK, recompute=rows, block=RESIDUAL)

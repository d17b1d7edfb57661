"""Refuse to score outputs that are NaN or infinite."""

from __future__ import annotations

from torch import Tensor

from ..errors import LowtideError


def refuse_no_number(outputs: Tensor) -> None:
    """Refuse outputs that are NaN or infinite.

    Args:
        outputs: (N, K).

    Raises:
        LowtideError: An output is NaN or infinite.
    """
    wrong = int((~outputs.isfinite()).any(-1).sum())
    if wrong:
        raise LowtideError(f"the model's answer to {wrong} of {len(outputs)} images is no number")

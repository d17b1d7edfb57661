"""No score is taken of what is no number."""

from __future__ import annotations

from torch import Tensor

from ..errors import LowtideError


def refuse_infinite(outputs: Tensor) -> None:
    """Refuse outputs that are no numbers.

    Args:
        outputs: (N, K).

    Raises:
        LowtideError: An output is NaN or infinite.
    """
    wrong = int((~outputs.isfinite()).any(-1).sum())
    if wrong:
        raise LowtideError(f"the model's answer to {wrong} of {len(outputs)} images is no number")

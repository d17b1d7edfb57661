"""The tensors in a model's output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, ValuesView
from typing import Any

from torch import Tensor

Parts = list | tuple | ValuesView


def tensors(output: Any) -> list[Tensor]:
    """Gather the tensors of a model's output.

    Args:
        output: A tensor, or a tuple, list or mapping of such, as deep as may be.

    Returns:
        Every tensor of real numbers in it.
    """
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if dataclasses.is_dataclass(output) and not isinstance(output, Mapping):
        output = vars(output)
    parts: Any = ValuesView(output) if isinstance(output, Mapping) else output
    return [t for part in parts for t in tensors(part)] if isinstance(parts, Parts) else []

"""torch's multi-head attention, opened: its maps, products and softmax are answered themselves."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch.nn.functional as F


def _opened(function: Any) -> Callable[..., Any]:
    """Give a function that asks no mode for itself, so that a mode sees what it calls.

    Args:
        function: One of torch's, written in Python; it asks `has_torch_function` first.

    Returns:
        The same code.
    """
    names = {**function.__globals__, "has_torch_function": lambda tensors: False}
    opened = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


OPENED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: _opened(F.multi_head_attention_forward)
}

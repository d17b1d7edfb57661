"""torch's multi-head attention, opened: its maps, products and softmax are answered themselves."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import ParamSpec, TypeVar

import torch.nn.functional as F

P = ParamSpec("P")
R = TypeVar("R")


def opened(function: Callable[P, R], **names: object) -> Callable[P, R]:
    """Copy a function with some of its global names replaced.

    Args:
        function: Written in Python.
        **names: What they mean.

    Returns:
        The same code.
    """
    names = {**function.__globals__, **names}
    opened = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


OPENED: dict[Callable[..., object], Callable[..., object]] = {
    F.multi_head_attention_forward: opened(
        # It asks no mode for itself, so that a mode sees what it calls.
        F.multi_head_attention_forward,
        has_torch_function=lambda tensors: False,
    )
}

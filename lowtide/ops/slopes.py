"""Slopes of activation functions: dy/dx at x, nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

QUICK = 1.702
"""The factor in x sigmoid(1.702 x) (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""


def gelu(x: Tensor) -> Tensor:
    """Differentiate x Phi(x).

    Args:
        x: Any shape.

    Returns:
        Phi(x) + x phi(x).
    """
    return torch.ops.aten.gelu_backward(torch.ones_like(x), x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Differentiate the tanh form of GELU.

    Args:
        x: Any shape.

    Returns:
        The slope.
    """
    return torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate="tanh")


def silu(x: Tensor) -> Tensor:
    """Differentiate x s(x), s the sigmoid.

    Args:
        x: Any shape.

    Returns:
        s(x) (1 + x (1 - s(x))).
    """
    return torch.ops.aten.silu_backward(torch.ones_like(x), x)


def quick_gelu(x: Tensor) -> Tensor:
    """Differentiate x s(1.702 x), which is SiLU's slope at 1.702 x.

    Args:
        x: Any shape.

    Returns:
        The slope.
    """
    return silu(QUICK * x)


def hardswish(x: Tensor) -> Tensor:
    """Differentiate x clip(x + 3, 0, 6) / 6.

    Args:
        x: Any shape.

    Returns:
        0 up to -3, 1 from 3, x / 3 + 1/2 between.
    """
    return torch.ops.aten.hardswish_backward(torch.ones_like(x), x)


def relu(x: Tensor) -> Tensor:
    """Differentiate max(x, 0).

    Args:
        x: Any shape.

    Returns:
        1 where x > 0, else 0.
    """
    return (x > 0).to(x.dtype)


def relu6(x: Tensor) -> Tensor:
    """Differentiate clip(x, 0, 6).

    Args:
        x: Any shape.

    Returns:
        1 where 0 < x < 6, else 0.
    """
    return ((x > 0) & (x < 6)).to(x.dtype)

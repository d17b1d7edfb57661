"""Slopes of activation functions: dy/dx at x of any shape, and nothing else."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Slope = Callable[[Tensor], Tensor]

QUICK = 1.702
"""The factor in x sigmoid(1.702 x) (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934, 1.6732632423543772848
"""Those of SELU (Klambauer et al. 2017, arXiv:1706.02515)."""


def gelu(x: Tensor) -> Tensor:
    """Differentiate x Phi(x): Phi(x) + x phi(x)."""
    return torch.ops.aten.gelu_backward(torch.ones_like(x), x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Differentiate the tanh form of GELU."""
    return torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate="tanh")


def silu(x: Tensor) -> Tensor:
    """Differentiate x s(x), s the sigmoid: s(x) (1 + x (1 - s(x)))."""
    return torch.ops.aten.silu_backward(torch.ones_like(x), x)


def quick_gelu(x: Tensor) -> Tensor:
    """Differentiate x s(1.702 x), which is SiLU's slope at 1.702 x."""
    return silu(QUICK * x)


def hardswish(x: Tensor) -> Tensor:
    """Differentiate x clip(x + 3, 0, 6) / 6: 0 up to -3, 1 from 3, x / 3 + 1/2 between."""
    return torch.ops.aten.hardswish_backward(torch.ones_like(x), x)


def relu(x: Tensor) -> Tensor:
    """Differentiate max(x, 0): 1 where x > 0, else 0."""
    return (x > 0).to(x.dtype)


def relu6(x: Tensor) -> Tensor:
    """Differentiate clip(x, 0, 6): 1 where 0 < x < 6, else 0."""
    return ((x > 0) & (x < 6)).to(x.dtype)


def mish(x: Tensor) -> Tensor:
    """Differentiate x t, t = tanh(softplus(x)): t + x s(x) (1 - t^2) (arXiv:1908.08681)."""
    return torch.ops.aten.mish_backward(torch.ones_like(x), x)


def elu(x: Tensor) -> Tensor:
    """Differentiate max(x, 0) + min(exp(x) - 1, 0): 1 where x > 0, else exp(x)."""
    return torch.ops.aten.elu_backward(torch.ones_like(x), 1, 1, 1, False, x)


def selu(x: Tensor) -> Tensor:
    """Differentiate SELU: scale where x > 0, else scale alpha exp(x)."""
    ones = torch.ones_like(x)
    return torch.ops.aten.elu_backward(ones, SELU_ALPHA, SELU_SCALE, 1, False, x)


def softplus(x: Tensor) -> Tensor:
    """Differentiate log(1 + exp(x)): s(x)."""
    return torch.ops.aten.softplus_backward(torch.ones_like(x), x, 1, 20)


def log_sigmoid(x: Tensor) -> Tensor:
    """Differentiate log(s(x)): s(-x)."""
    return torch.sigmoid(-x)


def hardsigmoid(x: Tensor) -> Tensor:
    """Differentiate clip(x + 3, 0, 6) / 6: 1/6 where -3 < x < 3, else 0."""
    return torch.ops.aten.hardsigmoid_backward(torch.ones_like(x), x)


@functools.cache
def faster(slope: Slope, rate: float) -> Slope:
    """Give the slope of f(rate x) / rate, which is f'(rate x).

    Args:
        slope: f'.
        rate: Any number but 0.

    Returns:
        The same function for the same arguments, so that its edges are found once.
    """
    return lambda x: slope(rate * x)


@functools.cache
def between(
    least: float, most: float, inside: float, outside: float = 0.0, closed: bool = False
) -> Slope:
    """Give the slope of a piecewise linear function: one number inside an interval, one outside.

    Args:
        least: Where the interval begins.
        most: Where it ends.
        inside: The slope in it.
        outside: The slope elsewhere.
        closed: Whether its ends belong to it.

    Returns:
        The same function for the same arguments, so that its edges are found once.
    """

    def slope(x: Tensor) -> Tensor:
        # An infinite end is no end: infinity itself is inside.
        low, high = (x >= least, x <= most) if closed else (x > least, x < most)
        within = low | (least == -math.inf), high | (most == math.inf)
        return torch.full_like(x, outside).masked_fill_(within[0] & within[1], inside)

    return slope

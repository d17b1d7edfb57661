"""Compute functions of a tensor's rows in slices, so that intermediate results stay small."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

SLICE = 1 << 18
"""Numbers in a slice."""


def slices(tensors: tuple[Tensor, ...], unit: int, of: Callable[..., Tensor]) -> Iterator[Tensor]:
    """Compute a function of rows slice by slice, flattened.

    Args:
        tensors: What it is a function of; the first (..., C), all with the same leading dimensions.
        unit: Every chunk but the last holds a multiple of this many numbers.
        of: Maps the same rows of every tensor to such rows; the shape is that of the first.

    Yields:
        Pieces (n,), together the flattened result, in float32 or float64.
    """
    x, *_ = tensors = tuple(t.detach() for t in tensors)
    if x.numel() == 0:
        return
    if x.ndim < 2:
        tensors = tuple(t.reshape(1, -1) for t in tensors)
    elif x.is_contiguous():
        tensors = tuple(t.flatten(0, -2) for t in tensors)
    count, row = len(tensors[0]), tensors[0][0].numel()
    step = unit // math.gcd(unit, row)
    # A compiler fuses the chain by itself, and unrolled slices would only lengthen its graph.
    rows = count if torch.compiler.is_compiling() else step * max(1, SLICE // (row * step))
    for start in range(0, count, rows):
        chunk = of(*(t[start : start + rows] for t in tensors)).reshape(-1)
        yield chunk if chunk.dtype == torch.float64 else chunk.float()


def wide(x: Tensor) -> Tensor:
    """Compute in float32 at least.

    Args:
        x: Any tensor.

    Returns:
        It in float64 or float32.
    """
    return x if x.dtype == torch.float64 else x.float()


def standardise(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Shift and scale each row.

    Args:
        x: Numbers (..., C).
        mean: Subtracted, (..., 1).
        rstd: Then multiplied with, (..., 1).

    Returns:
        (x - mean) rstd.
    """
    return wide(x).sub(mean).mul_(rstd)

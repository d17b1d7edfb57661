"""Add to parts of a feature map's channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function


def add_to_parts(
    y: Tensor, *updates: Tensor, parts: Sequence[int], axis: int, scale: float, own: bool = False
) -> Tensor:
    """Add to some of the equal parts that the channels of a feature map fall into.

        z_p = y_p + scale u_p

    To modes it is one function of torch's, so that one may compute it in the place of y.

    Args:
        y: The map.
        *updates: What to add to each of `parts`, as large as a part.
        parts: Which ones.
        axis: The channels' axis.
        scale: Factor of what is added.
        own: Whether nobody reads y hereafter.

    Returns:
        The sum, shaped as y.
    """
    if _is_answered(y, *updates):
        options: Any = {"parts": parts, "axis": axis, "scale": scale, "own": own}
        result: Tensor = handle_torch_function(add_to_parts, (y, *updates), y, *updates, **options)
        return result
    pieces = list(y.split(updates[0].shape[axis], axis))
    for i, update in zip(parts, updates, strict=True):
        pieces[i] = torch.add(pieces[i], update, alpha=scale)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)


def add_one_by_one(
    y: Tensor, updates: Iterable[Tensor], *, parts: Sequence[int], axis: int, scale: float
) -> Tensor:
    """Add to parts of a feature map that nobody reads hereafter.

    Where a mode may add in the place of y, each update is gone before the next is made. Elsewhere
    all are added at once, as each sum is a new map.

    Args:
        y: The map.
        updates: What to add to each of `parts`.
        parts: Which ones.
        axis: The channels' axis.
        scale: Factor of what is added.

    Returns:
        What `add_to_parts` gives.
    """
    if not (torch.is_grad_enabled() and _is_answered(y)):
        return add_to_parts(y, *updates, parts=parts, axis=axis, scale=scale, own=True)
    each = iter(updates)  # zip would hold the last one
    for part in parts:
        y = add_to_parts(y, next(each), parts=[part], axis=axis, scale=scale, own=True)
    return y


def _is_answered(*tensors: Tensor) -> bool:
    return not torch.compiler.is_compiling() and has_torch_function(tensors)

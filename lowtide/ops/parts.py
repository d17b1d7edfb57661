"""Sums in the place of a feature map that nobody else reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.parts import add_to_parts
from .lineage import follow, pass_on
from .saved import Call, Calls, Codecs, Result


def _add(y: Tensor, *updates: Tensor, parts: Sequence[int], axis: int, scale: float) -> Tensor:
    """Add in the place of y."""
    for i, update in zip(parts, updates, strict=True):
        width = update.shape[axis]
        y.narrow(axis, i * width, width).add_(update, alpha=scale)
    return y


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, parts: Sequence[int], axis: int, scale: float, y: Tensor, *updates: Tensor
    ) -> Tensor:
        width = updates[0].shape[axis]
        ctx.places = [(axis, i * width, width) for i in parts]
        ctx.scale = scale
        # Detached, it counts the same versions, so that what was kept of y notices the write.
        return _add(y.detach(), *updates, parts=parts, axis=axis, scale=scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        parts = (dy.narrow(*place) for place in ctx.places)
        return None, None, None, dy, *(p if ctx.scale == 1 else p * ctx.scale for p in parts)


def _answer(codecs: Codecs, call: Call) -> Result:
    y, *updates = call.args
    if not call.kwargs["own"] or any(torch.result_type(y, u) != y.dtype for u in updates):
        return NotImplemented
    options = {key: call.kwargs[key] for key in ("parts", "axis", "scale")}
    if not any(t.requires_grad for t in call.args):
        return _add(*call.args, **options)
    before = y.new_empty(1).expand_as(y)  # takes the note of what y follows from
    pass_on(y, before)
    z: Tensor = _InPlace.apply(*options.values(), *call.args)
    # Costly, so that it is called but once on what the base's product gives again.
    follow(_add, (before, *updates), options, z, costly=True)
    return z


FOLLOWED_TO_ATTENTION = (add_to_parts,)
CALLS: Calls = {add_to_parts: _answer}

"""One buffer for the gradients that the readers of a large tensor give it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .once import once

LARGE = 1 << 21
"""Numbers of a large tensor, at least."""
_NAME = "_lowtide_fan"


class Fan:
    """What the readers of a tensor have given it so far in one backward pass.

    Torch adds the gradient of each reader to the sum of those before, so that two of them, and a
    third for their sum, are there at once. Readers that know the fan add theirs where they compute
    it, some of it at a time, and give torch nothing.
    """

    def __init__(self, like: Tensor) -> None:
        """Gather the gradients of a tensor.

        Args:
            like: The tensor; not held.
        """
        self._shape, self._dtype, self._device = like.shape, like.dtype, like.device
        self._task = -1
        self._sum: Tensor | None = None

    def buffer(self) -> Tensor:
        """Give the sum so far, to add to.

        Returns:
            Of the tensor's shape and dtype; zeros at first.
        """
        if (found := self._current()) is None:
            found = torch.zeros(self._shape, dtype=self._dtype, device=self._device)
            self._sum = found
        return found

    def add(self, gradient: Tensor) -> None:
        """Add a gradient.

        Args:
            gradient: Nobody else's, for it may be written to; or `buffer`, which is added already.
        """
        if (found := self._current()) is None:
            self._sum = gradient.to(self._dtype)
        elif found is not gradient:
            found.add_(gradient)

    def take(self) -> Tensor | None:
        """Give the sum away.

        Returns:
            The sum; None if nothing was added.
        """
        found, self._sum = self._current(), None
        return found

    def _current(self) -> Tensor | None:
        """Drop what a pass has left that did not come to the tensor itself."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self._sum = task, None
        return self._sum


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fan: Fan) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.fan = fan
        return x.detach()  # counts the same versions

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, None]:
        found = ctx.fan.take()
        if found is None or dy is None:
            return dy if found is None else found, None
        return found.add_(dy), None


def begin(fan: Fan | None, like: Tensor, shape: torch.Size) -> Tensor:
    """Give a sum to add a gradient to, some of it at a time.

    Args:
        fan: Where it is gathered; None if nowhere.
        like: Of its dtype and device.
        shape: Its shape.

    Returns:
        Zeros, or what is gathered so far; for `hand`.
    """
    return like.new_zeros(shape) if fan is None else fan.buffer()


def hand(fan: Fan | None, gradient: Tensor | None) -> Tensor | None:
    """Add a gradient where it is gathered.

    Args:
        fan: Where; None if nowhere.
        gradient: Nobody else's, for it may be written to, or what `begin` gave; None if nobody
            needs it.

    Returns:
        What is left for torch: nothing, or all of it.
    """
    if fan is None or gradient is None:
        return gradient
    fan.add(gradient)
    return None


def gathered(x: Tensor) -> tuple[Tensor, Fan | None]:
    """Give what the readers of a large tensor read in its place, so that they share a sum.

    The tensor itself is left as it is: whoever asks for its gradient, or hooks into it, sees the
    sum of all readers, as ever.

    Args:
        x: What an op reads.

    Returns:
        The same numbers, and where the op adds the gradient that it does not return; x and None
        where there is nothing to gain.
    """
    if torch.compiler.is_compiling() or x.numel() < LARGE or not x.requires_grad or x.is_leaf:
        return x, None
    alias, fan, version = x.__dict__.get(_NAME, (None, None, -1))
    if alias is None or version != x._version:
        x.__dict__.setdefault("_lowtide_kept", {})  # shared, like what x follows from
        fan = Fan(x)
        alias = _Gather.apply(x, fan)
        alias.__dict__.update({k: v for k, v in x.__dict__.items() if k != _NAME})
        x.__dict__[_NAME] = alias, fan, x._version
    return alias, fan

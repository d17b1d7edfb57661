"""A product that is made again for its gradient alone: nobody reads its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..codecs.base import Residue
from .frozen import FROZEN_LINEAR, Slabs, frozen_linear
from .linear import LINEAR, autocast, but_frozen
from .saved import EXACT, Forward, Needs, saved


class Unread(TorchFunctionMode):
    """Answers the linear map of one weight by a map of its result's shape, without its numbers.

    The gradients are those of the linear map. For a part that is run again in backward and whose
    last map it is, so that what follows reads no number either.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        """Name the map.

        Args:
            weight: Its weight, or the bytes of it.
        """
        super().__init__()
        self._weight = weight

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if len(args) > 2 and args[1] is self._weight and not kwargs:
            if func is F.linear:
                return _linear(*args)
            if func is frozen_linear:
                return _frozen(*args)
        return func(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    cast = but_frozen(autocast((x, weight, bias)), weight)
    return saved(replace(LINEAR, forward=_shaped), EXACT, *cast)


def _shaped(needs: Needs, x: Tensor, weight: Tensor, bias: Tensor | None) -> Forward:
    y = x.new_empty((*x.shape[:-1], len(weight)))
    return Forward(y, (Residue(x),) if needs[1] else (), (weight if needs[0] else None,))


def _frozen(x: Tensor, packed: Tensor, bias: Tensor | None, slabs: Slabs) -> Tensor:
    op = replace(FROZEN_LINEAR, forward=_shaped_as_slabs)
    low = autocast((x, bias))
    return saved(op, (), low[0], packed, low[1], slabs=slabs)


def _shaped_as_slabs(
    needs: Needs, x: Tensor, packed: Tensor, bias: Tensor | None, *, slabs: Slabs
) -> Forward:
    y = x.new_empty((*x.shape[:-1], slabs.shape[0]))
    return Forward(y, (), (packed if needs[0] else None,))

"""A backward function that can be differentiated no further says so at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch.autograd.function import once_differentiable

from ..errors import Unsupported

P = ParamSpec("P")
C = TypeVar("C")
R = TypeVar("R")


def once(backward: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Refuse to make a graph of a backward function, as `create_graph=True` asks for.

    torch's `once_differentiable` alone refuses where the incoming gradient has a graph. Where it
    has none, as in a gradient penalty `grad(f(x).sum(), x, create_graph=True)`, the terms of the
    second derivative that come of what was kept would be missing without a word.

    Args:
        backward: Of an autograd Function.

    Returns:
        The same where no graph is made.

    Raises:
        Unsupported: When it is called with `create_graph=True`.
    """
    plain = once_differentiable(backward)

    @functools.wraps(backward)
    def guarded(ctx: C, *args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            raise Unsupported(
                "create_graph=True asks for a second derivative, and what is kept is enough for the"
                " first: lowtide.decompress(model), or policy exact"
            )
        result: R = plain(ctx, *args, **kwargs)
        return result

    return guarded

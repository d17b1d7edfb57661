"""Tensors that follow from what is kept already, so that keeping them costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs.base import Reader

Step = Callable[[Tensor], Tensor]

FOLLOWED: set[Callable[..., Any]] = {
    *(torch.add, Tensor.add, Tensor.__add__, torch.mul, Tensor.mul, Tensor.__mul__),
    *(F.relu, torch.relu, Tensor.relu, Tensor.contiguous, Tensor.float),
    *(torch.flatten, Tensor.flatten, torch.unflatten, Tensor.unflatten, Tensor.__getitem__),
    *(Tensor.view, Tensor.reshape, torch.reshape, torch.permute, Tensor.permute),
    *(torch.transpose, Tensor.transpose, torch.roll, Tensor.roll, F.pad),
    Tensor.mT.__get__,  # type: ignore[attr-defined]
}
"""Functions that cost next to nothing to compute again: views, and one pass over the numbers."""


@dataclass(frozen=True)
class Derived:
    """Reads a tensor off what is kept of another one, by steps that cost next to nothing.

    A layer norm keeps x^; what reads its output y = w x^ + b (a trained linear map, an attention
    that runs again in backward, SSF's scale) gets y from there.

    Attributes:
        codec: How the other one is kept.
        shape: Its shape.
        dtype: Its dtype.
        steps: From it to the tensor.

    Saves:
        Nothing.
    """

    codec: Reader
    shape: torch.Size
    dtype: torch.dtype
    steps: tuple[Step, ...]

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Unpack the other tensor and take the steps.

        Args:
            packed: What is kept of it.
            shape: Shape of the derived tensor.
            dtype: Its dtype.

        Returns:
            The derived tensor.
        """
        t = self.codec.unpack(packed, self.shape, self.dtype)
        for step in self.steps:
            t = step(t)
        return t.to(dtype)


def remember(tensor: Tensor, reader: Derived, packed: tuple[Tensor, ...]) -> None:
    """Note that a tensor follows from what is kept.

    Args:
        tensor: Any result; the note ends with the object, or when it is written to.
        reader: Gives it.
        packed: From this.
    """
    if not torch.compiler.is_compiling():
        tensor.__dict__["_lowtide_derived"] = (tensor._version, reader, packed)


def derived(tensor: Tensor) -> tuple[Derived, tuple[Tensor, ...]] | None:
    """Look up what a tensor follows from.

    Args:
        tensor: Any tensor.

    Returns:
        Its reader and what is kept, or None.
    """
    version, *known = tensor.__dict__.get("_lowtide_derived", (None,))
    return (known[0], known[1]) if known and version == tensor._version else None


def follow(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> None:
    """Carry the note from an argument to a result, through `FOLLOWED` functions.

    Args:
        function: The function that was called.
        args: Its arguments by place; of tensors only the first and weights.
        kwargs: Its arguments by name.
        result: What it gave.
    """
    if torch.compiler.is_compiling() or function not in FOLLOWED or not args:
        return
    x, *rest = args
    if not (isinstance(x, Tensor) and isinstance(result, Tensor)) or result is x:
        return
    others = [t for t in (*rest, *kwargs.values()) if isinstance(t, Tensor)]
    known = derived(x)
    if known is None or not all(isinstance(t, nn.Parameter) for t in others):
        return
    reader, packed = known
    # Bound here: the step must not hold x.
    steps = (*reader.steps, lambda t: function(t, *rest, **kwargs))
    remember(result, replace(reader, steps=steps), packed)

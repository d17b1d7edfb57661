"""Buffers that modules make of their own sizes and only ever read: held once, in few bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.wrapped import plain_kind


@dataclass(frozen=True)
class Constant:
    """A buffer that is in no file, follows from a module's sizes, and is only read.

    Attributes:
        kind: The module's class; of a subclass nothing is known.
        name: The buffer's name.
        of: The module's attributes that decide its numbers; an older version may lack some.
        dtype: What holds its numbers in fewer bytes, where what it is added to decides the dtype of
            the sum: float + int8 is float.
    """

    kind: type[nn.Module]
    name: str
    of: tuple[str, ...]
    dtype: torch.dtype | None = None


_known: dict[type[nn.Module], dict[str, Constant]] = {}


def declare_constants(constants: Iterable[Constant]) -> None:
    """Declare buffers that equal modules may share.

    Args:
        constants: What is known of each.
    """
    for constant in constants:
        _known.setdefault(constant.kind, {})[constant.name] = constant


def share_constants(model: nn.Module) -> None:
    """Let modules hold one tensor between them where their constants are equal to the bit.

    What is not as its module makes it, because somebody wrote to it, stays as it is. On the meta
    device, where there are no numbers, every constant counts as its module makes it.

    Args:
        model: Any model; its buffers are replaced, never written to.
    """
    made: dict[object, Tensor] = {}
    for module in model.modules():
        for name, constant in _known.get(plain_kind(module), {}).items():
            if (own := module._buffers.get(name)) is None:
                continue
            own = _narrowed(own, constant.dtype)
            sizes = tuple(str(getattr(module, a, None)) for a in constant.of)
            first = made.setdefault((constant, sizes, own.dtype, own.device), own)
            module._buffers[name] = first if _equal(first, own) else own


def _narrowed(own: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Keep a tensor's numbers in a smaller dtype, if they are the same there."""
    if dtype is None or own.dtype == dtype:
        return own
    small = own.to(dtype)
    return small if _equal(small.to(own.dtype), own) else own


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal; without numbers, whether their shapes are."""
    if one is other or one.is_meta:
        return one.shape == other.shape
    return torch.equal(one, other)

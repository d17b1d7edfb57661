"""Differences between the versions of timm and torch that lowtide runs with."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def classes(module: str, *names: str) -> tuple[type[nn.Module], ...]:
    """List the classes of some names that a module's installed version has.

    Args:
        module: Dotted name of the module.
        *names: Names of classes in it, some of which older versions lack.

    Returns:
        The classes there are, in order; none where there is no such module.
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        return ()
    return tuple(getattr(found, name) for name in names if hasattr(found, name))


@contextmanager
def on_meta() -> Iterator[None]:
    """Make models without their numbers: whatever is created inside has shapes and no memory.

    But `linspace`, which older versions of timm read its drop-path rates from as numbers.

    Yields:
        Nothing.
    """
    with torch.device("meta"), _Counted():
        yield


class _Counted(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        given = kwargs or {}
        if func is torch.linspace:
            given = {"device": "cpu", **given}
        return func(*args, **given)

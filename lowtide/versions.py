"""What differs between the versions of timm and torch that lowtide runs with."""

from __future__ import annotations

import importlib

from torch import nn


def classes(module: str, *names: str) -> tuple[type[nn.Module], ...]:
    """Find those of a module's classes that its installed version has.

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

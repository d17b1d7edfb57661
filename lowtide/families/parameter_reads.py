"""Find the modules whose weight a model reads without calling them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def watch_parameter_reads(model: nn.Module, paths: Iterable[str]) -> set[str]:
    """Watch modules whose parameters should be read by their own forward alone.

    Nothing may be grafted on a module that is read from outside, if only for its device: the
    reader would miss what it looks for, or train an adapter it never calls.

    Args:
        model: Changed in place, for good: a copy on the meta device.
        paths: The modules.

    Returns:
        The paths of those that were read from outside; filled by running the model.
    """
    read: set[str] = set()
    for path in paths:
        module = model.get_submodule(path)
        module.__class__ = _watched(type(module), path, read)
    return read


def _watched(kind: type[nn.Module], path: str, read: set[str]) -> type[nn.Module]:
    class Watched(kind):  # type: ignore[misc, valid-type]
        _lowtide_inside = False

        def __call__(self, *args: object, **kwargs: object) -> object:
            self._lowtide_inside = True
            try:
                return super().__call__(*args, **kwargs)
            finally:
                self._lowtide_inside = False

        def __getattr__(self, name: str) -> object:
            if name in self.__dict__["_parameters"] and not self._lowtide_inside:
                read.add(path)
            return super().__getattr__(name)

    return Watched

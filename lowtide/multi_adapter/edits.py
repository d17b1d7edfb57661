"""The edits of one adapter at one place, and how they are put there for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ..core.graft import Graft, find, root
from ..core.linear_maps import MAPS, NORMS
from ..tuning.adapter import Adapter
from ..tuning.exchange import set_module


class Stack(nn.Module):
    """The grafts of one adapter at one place, innermost first, without their base."""

    def __init__(self, grafts: Iterable[Graft]) -> None:
        super().__init__()
        self.grafts = nn.ModuleList(grafts)

    def forward(self, half: str, *tensors: Tensor) -> Any:
        """Run the grafts' part ahead of the base, or behind it.

        Args:
            half: `ahead` or `behind`.
            *tensors: The input; for `behind` what `ahead` gave and last the base's output.

        Returns:
            The inputs from the outermost graft's to the base's; or the grafted output.
        """
        grafts: Any = self.grafts
        if half == "ahead":
            given = list(tensors)
            for graft in reversed(grafts):
                given.append(graft.ahead(given[-1]))
            return tuple(given)
        *inputs, y = tensors
        for graft, x in zip(grafts, reversed(inputs[:-1]), strict=True):
            y = graft.behind(x, y)
        return y


@dataclass
class Edits:
    """The edits of one adapter at one place.

    Attributes:
        grafts: Its grafts, innermost first.
        thawed: Parameters, and statistics, in place of the backbone's own, by name.
    """

    grafts: list[Graft] = field(default_factory=list)
    thawed: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def stack(self) -> Stack:
        """The grafts as one module."""
        return Stack(self.grafts)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The grafts' own tensors, by name in `stack`."""
        return {
            f"grafts.{i}.{name}": value
            for i, graft in enumerate(self.grafts)
            for name, value in graft.own()
        }

    @cached_property
    def kind(self) -> object:
        """Equal for the edits of two adapters that differ only in their numbers."""
        shapes = tuple((n, t.shape, t.dtype) for n, t in (self.tensors | self.thawed).items())
        return shapes, tuple(_structure(graft) for graft in self.grafts)

    def share(self, module: nn.Module) -> bool:
        """Whether the module below may run once for these edits and those of other adapters.

        Args:
            module: The backbone's own module at this place.

        Returns:
            Whether all grafts stand ahead of it or behind it, and of its own parameters none but
            vectors of a linear map or a norm are thawed.
        """
        if not all(graft.splits for graft in self.grafts):
            return False
        vectors = all(t.ndim <= 1 for t in self.thawed.values())
        return not self.thawed or (vectors and type(module) in (*MAPS, *NORMS))


def edits_of(adapter: Adapter) -> dict[str, Edits]:
    """Sort an adapter's edits by place.

    Args:
        adapter: Not in place.

    Returns:
        Edits by path.
    """
    found: dict[str, Edits] = {}
    for path, _, graft in adapter.grafts:
        found.setdefault(path, Edits()).grafts.append(graft)
    for path, _, name, p in adapter.thawed:
        found.setdefault(path, Edits()).thawed[name] = p
    for (path, _, name), value in adapter.statistics.items():
        found.setdefault(path, Edits()).thawed[name] = value
    return found


@contextlib.contextmanager
def in_place(backbone: nn.Module, edits: Mapping[str, Edits]) -> Iterator[None]:
    """Put one adapter's edits in place for a while.

    Args:
        backbone: Plain but for grafts at other places; the same afterwards.
        edits: By path.

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as stack:
        for path, own in edits.items():
            module = root(find(backbone, path))
            for name, value in own.thawed.items():
                parameter = name in module._parameters
                holder: dict[str, Any] = module._parameters if parameter else module._buffers
                stack.callback(holder.__setitem__, name, holder[name])
                holder[name] = value
            if own.grafts:
                stack.enter_context(replaced(backbone, path, own.grafts[-1]))
        yield


@contextlib.contextmanager
def replaced(backbone: nn.Module, path: str, graft: Graft) -> Iterator[None]:
    """Put a graft in the place of a module for a while.

    Args:
        backbone: Changed in place; the same afterwards.
        path: The place.
        graft: Stands on the module.

    Yields:
        Nothing.
    """
    standing = find(backbone, path)
    set_module(backbone, path, graft)
    try:
        yield
    finally:
        set_module(backbone, path, standing)


_EVERY = frozenset(vars(nn.Module())) - {"training"}
"""What every module has."""


def _structure(module: nn.Module) -> object:
    """A module's class and everything of it that is no tensor, its base left out."""
    own = {k: _plain(v) for k, v in vars(module).items() if k not in _EVERY}
    parts = [(n, m) for n, m in module._modules.items() if m is not None and n != "base"]
    inside = [(n, _structure(m)) for n, m in parts]
    return type(module), tuple(sorted(own.items())), tuple(inside)


def _plain(value: object) -> object:
    """A value that can be compared; of what cannot, which object it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(_plain, value))
    return id(value)

"""The one mechanism of change: methods return edits, and nothing else alters a backbone."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..errors import Unsupported
from .graft import Graft
from .side import Side
from .site import Site, Sites


@dataclass(frozen=True)
class Swap:
    """Put a graft where a module stood.

    Attributes:
        site: Where.
        graft: Builds the graft around the module it finds there.
    """

    site: Site
    graft: Callable[[nn.Module], Graft]


@dataclass(frozen=True)
class Thaw:
    """Train some of the module's own parameters.

    Attributes:
        site: Whose.
        names: Which; exact names.
    """

    site: Site
    names: tuple[str, ...]


@dataclass(frozen=True)
class Beside:
    """Run a side network along the backbone's blocks.

    Attributes:
        side: Builds it for a number of classes; 0 where the backbone gives feature maps to other
            parts of a model and classifies nothing.
        maps: Whether it works there: what it learns is in the outputs of blocks, or `finish` puts
            it into the last one's. It asks for neither extra tokens nor a block's halves then.
    """

    side: Callable[[int], Side]
    maps: bool = False


Edit = Swap | Thaw | Beside


class Method(abc.ABC):
    """What trains: a frozen dataclass whose fields are the hyper-parameters.

    The classifier always trains and is not a method's business.
    """

    overwrites: ClassVar[bool] = False
    """Whether the backbone's own weights change in place, with no copy to return to."""

    learning_rate: ClassVar[float] = 1e-3
    """Peak learning rate of a run that is given none, for AdamW and batches of 32."""

    @property
    def identity(self) -> bool:
        """Whether the method promises that training starts exactly at the backbone."""
        return True

    @abc.abstractmethod
    def edits(self, sites: Sites) -> Iterable[Edit]:
        """List the edits that the method makes to a backbone.

        Args:
            sites: Every site of the backbone.

        Returns:
            The edits; none is made when any raises.

        Raises:
            Unsupported: The backbone lacks what the method needs.
        """


METHODS: dict[str, type[Method]] = {}
"""Every known method by its lower-case name, which is the name of its file."""


def method(cls: type[Method]) -> type[Method]:
    """Register a method under the name of the file that defines it.

    Args:
        cls: A frozen dataclass.

    Returns:
        The same class.

    Raises:
        ValueError: The name is taken.
    """
    name = method_name(cls)
    if name in METHODS:
        raise ValueError(f"the method name {name!r} is already taken by {METHODS[name]}")
    METHODS[name] = cls
    return cls


def method_name(cls: type[Method]) -> str:
    """Name of a method on the command line and in files.

    Args:
        cls: The method's class.

    Returns:
        The name of the file that defines it.
    """
    return cls.__module__.rpartition(".")[2]


def need(sites: Sites, method: str, what: str) -> Sites:
    """Refuse an empty choice of sites, so that no method silently trains nothing.

    Args:
        sites: What the method found.
        method: Its name.
        what: What it was looking for.

    Returns:
        The sites, when there are any.

    Raises:
        Unsupported: There are none.
    """
    if not sites:
        raise Unsupported(f"{method} needs {what}, and this backbone has none")
    return sites

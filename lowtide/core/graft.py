"""The one mechanism of change: methods return edits, and nothing else alters a backbone."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import Unsupported
from .site import Site, Sites

GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "normalized_shape")
"""What a backbone may read off a module it is about to call; a graft never changes it."""

Block = Callable[..., Any]
"""Runs one element of a backbone's chain; see `Side.step`."""


class Graft(nn.Module):
    """A module that stands where `base` stood, changes what it is given, or what it gives.

    Its geometry can be read off a graft as off `base`, and nothing else: a backbone that reads
    `.weight` past a graft must fail loudly rather than train an adapter it never calls.

    Attributes:
        base: The module it replaced, possibly another graft.
    """

    unmergeable: ClassVar[str] = "it is no linear map of its input"
    """Why no plain module equals this graft, where `merged` gives None."""

    positionwise: ClassVar[bool] = False
    """Whether each position is treated on its own, if channels come last."""

    base: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        for name in GEOMETRY:
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))

    @property
    def root(self) -> nn.Module:
        """The backbone's own module, under any number of grafts."""
        return self.base.root if isinstance(self.base, Graft) else self.base

    @property
    def splits(self) -> bool:
        """Whether its forward is `behind(x, base(ahead(x)))`, so that many may share one base."""
        return type(self).forward is Graft.forward

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Compute the grafted feature; same shape as `base` gives.

        Args:
            x: The input.
            *args: What else the backbone tells the base, such as an attention mask.
            **options: The same by name.

        Returns:
            The grafted feature.
        """
        return self.behind(x, self.base(self.ahead(x), *args, **options))

    def ahead(self, x: Tensor) -> Tensor:
        """Change what the base is given.

        Args:
            x: The input.

        Returns:
            The base's input.
        """
        return x

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Change what the base gave.

        Args:
            x: The input, before `ahead`.
            y: The base's output.

        Returns:
            The grafted feature.
        """
        return y

    def merged(self) -> nn.Module | None:
        """Build a plain module equal to this graft in eval mode.

        Returns:
            The module, or None where there is none.
        """
        return None

    def channelwise(self) -> tuple[Tensor | None, Tensor | None] | None:
        """Give the scale and shift per channel that this puts behind its base.

        Returns:
            The two, `(C,)` each or None; None where the graft does something else.
        """
        return None

    def fitted(self, name: str, value: Tensor) -> Tensor:
        """Fit a saved tensor to this place, where its size follows that of the image.

        Args:
            name: Local name of one of its own.
            value: What was saved.

        Returns:
            The value to load; by default the one saved.
        """
        return value

    def own(self) -> Iterator[tuple[str, Tensor]]:
        """List the parameters and persistent buffers this graft brought.

        Yields:
            Local name and tensor.
        """
        for name, value in self.state_dict(keep_vars=True).items():
            if not name.startswith("base."):
                yield name, value


class Side(nn.Module):
    """A network beside the backbone that reads its blocks, or writes between them.

    State is an argument and a result, never an attribute, so a side network compiles, checkpoints
    and runs on several devices like any pure function.
    """

    unmergeable: ClassVar[str] = (
        "a side network runs beside the backbone, which has no place for it"
    )

    def step(self, path: str, block: Block, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Run one element of the backbone's chain: a block, or what stands between stages.

        Args:
            path: Its path.
            block: Runs it. `block(x)` gives its output; where the site is elastic, `block(x, t)`
                runs it with extra tokens `t` (B, n, C) that its own can see, and gives both; where
                the site is halved, `block(x, between=f)` runs it with `f` applied to the feature
                map between its attention and its MLP.
            x: Its input.
            state: What the previous step returned; None before the first.

        Returns:
            The output to pass on, and the next state.
        """
        return block(x), state

    def finish(self, x: Tensor, state: Any) -> Tensor:
        """Read or replace the feature map before the backbone's final norm and pooling.

        Args:
            x: Output of the last block.
            state: What the last step returned.

        Returns:
            The feature map to pass on.
        """
        return x

    def classify(self, logits: Tensor, state: Any) -> Tensor:
        """Read or replace the logits.

        Args:
            logits: What the classifier gave, `(B, K)`.
            state: What the last step returned.

        Returns:
            The final logits.
        """
        return logits


def key(path: str) -> str:
    """Name what a side network has for one site; its modules are named without dots.

    Args:
        path: The site's path.

    Returns:
        A key for `nn.ModuleDict` or `nn.ParameterDict`.
    """
    return path.replace(".", "-")


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
        """Whether it promises that training starts exactly at the backbone."""
        return True

    @abc.abstractmethod
    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Say what to change where.

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


def find(model: nn.Module, path: str) -> nn.Module:
    """Find what stands at a place, also inside a module that a graft has taken the place of.

    Args:
        model: The backbone, with or without grafts.
        path: Where, in the untouched backbone.

    Returns:
        The backbone's own module there, or the graft around it.
    """
    for name in path.split(".") if path else ():
        model = root(model).get_submodule(name)
    return model


def root(module: nn.Module) -> nn.Module:
    """Look under any number of grafts.

    Args:
        module: A graft or the backbone's own module.

    Returns:
        The backbone's own module.
    """
    return module.root if isinstance(module, Graft) else module

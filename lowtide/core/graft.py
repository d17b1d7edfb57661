"""A graft: a module that replaces another, and changes its input or its output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as everywhere

from .linear_maps import MAPS
from .wrapped import plain_kind

GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "normalized_shape")
"""What a backbone may read off a module it is about to call; a graft never changes it."""


class Graft(nn.Module):
    """A module that replaces `base`, and changes its input or its output.

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
        y = self.base(self.ahead(x), *args, **options)
        return self.onto(x, y) if _is_unseen(self.base) else self.behind(x, y)

    def ahead(self, x: Tensor) -> Tensor:
        """Change the input of the base.

        Args:
            x: The input.

        Returns:
            The base's input.
        """
        return x

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Change the output of the base.

        Args:
            x: The input, before `ahead`.
            y: The base's output.

        Returns:
            The grafted feature, of the same shape.
        """
        return y

    def onto(self, x: Tensor, y: Tensor) -> Tensor:
        """Change an output of the base that nobody else reads, so that it may be written to.

        Args:
            x: The input, before `ahead`.
            y: The base's output.

        Returns:
            What `behind` gives.
        """
        return self.behind(x, y)

    def merged(self) -> nn.Module | None:
        """Build a plain module equal to this graft in eval mode.

        Returns:
            The module, or None where there is none.
        """
        return None

    def channelwise(self) -> tuple[Tensor | None, Tensor | None] | None:
        """Give the scale and shift per channel that this graft applies to the base's output.

        Returns:
            The two, `(C,)` each or None; None where the graft does something else.
        """
        return None

    def fitted(self, name: str, value: Tensor) -> Tensor:
        """Resize a saved tensor whose size follows that of the image.

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


def _is_unseen(module: nn.Module) -> bool:
    """Whether what a module gives is new and goes to its caller alone: a map without hooks."""
    if torch.compiler.is_compiling():
        return False
    hooks = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    hooked = any(getattr(module, f"_{h}") or getattr(everywhere, f"_global_{h}") for h in hooks)
    return plain_kind(module) in MAPS and "forward" not in vars(module) and not hooked


def find(model: nn.Module, path: str) -> nn.Module:
    """Find the module at a path, also inside a module that a graft has replaced.

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
    """Give the backbone's own module, under any number of grafts.

    Args:
        module: A graft or the backbone's own module.

    Returns:
        The backbone's own module.
    """
    return module.root if isinstance(module, Graft) else module

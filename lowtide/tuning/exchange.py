"""Replace a module of a model, and move the hooks on it to the new one."""

from __future__ import annotations

from torch import nn

from ..core.graft import find, root
from ..errors import InputError

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)
"""What `torch.nn.Module` keeps of its forward hooks."""


def exchange_hooks(new: nn.Module, old: nn.Module) -> None:
    """Move hooks from a module to the one that replaces it.

    Feature extractors read feature maps with forward hooks: left on the module under a graft, one
    would read what the graft is given and not what it gives.

    Args:
        new: Takes the place.
        old: Stood there.
    """
    for name in HOOKS:
        new.__dict__[name], old.__dict__[name] = old.__dict__[name], new.__dict__[name]


def set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path.

    Args:
        model: Changed in place.
        path: Where; not empty.
        module: What.

    Raises:
        InputError: The path is empty.
    """
    parent, _, leaf = path.rpartition(".")
    if not leaf:
        raise InputError("the backbone itself cannot be replaced")
    root(find(model, parent))._modules[leaf] = module

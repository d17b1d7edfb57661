"""See through `torch.compile`, data-parallel wrappers and compression around a model."""

from __future__ import annotations

import sys
from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import InputError, Unsupported, shown

COMPILED, PARALLEL = "_orig_mod", "module"


def refuse_no_module(taker: str, given: object) -> None:
    """Refuse what is no module where one is needed.

    Args:
        taker: Who needs it.
        given: What was given.

    Raises:
        InputError: It is none.
    """
    if not isinstance(given, nn.Module):
        raise InputError(f"{taker} takes a module, not {shown(given)}")


def refuse_scripted(model: nn.Module, first: str) -> None:
    """Refuse a model of which a part is scripted, where Python is to take part in its forward.

    Args:
        model: The model.
        first: What is to be done before it is scripted.

    Raises:
        Unsupported: A part is.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise Unsupported(f"a scripted module runs past Python: {first} before torch.jit.script")


def unwrapped(model: Any) -> Any:
    """Remove `torch.compile` and data-parallel wrappers from a model and its parts.

    Args:
        model: Any model; parts of it that were compiled are replaced by the parts themselves.

    Returns:
        The model inside.
    """
    for path, module in reversed(list(model.named_modules())):
        if path and (inside := _inside(module)) is not module:
            parent, _, leaf = path.rpartition(".")
            model.get_submodule(parent)._modules[leaf] = inside
    return _inside(model)


def plain_kind(module: nn.Module) -> type[nn.Module]:
    """Give a module's class, as it is without compression and with its weight wide.

    Args:
        module: Any module.

    Returns:
        Its class, or the one that compression or a frozen dtype has put its own in place of.
    """
    kind: type[nn.Module] = getattr(type(module), "_lowtide_plain", type(module))
    return getattr(kind, "stands_for", kind)


def numbers_of(model: nn.Module) -> Tensor:
    """Find a parameter that is neither bytes of a frozen weight nor an index.

    Args:
        model: Any model.

    Returns:
        The first one, which says on what device a model is and in what dtype it computes; one
        without numbers where there is none.
    """
    found = (p for p in model.parameters() if p.is_floating_point())
    return next(found, torch.empty(0))


def plain(name: str) -> str:
    """Give the name a tensor has in a model without wrappers.

    Args:
        name: Its name in a state, with `.` or `/` between words.

    Returns:
        The name without `_orig_mod` anywhere, and without `module` in front.
    """
    words = (name[len(w) + 1 :] for w in (COMPILED, PARALLEL) if name[: len(w) + 1] in _ends(w))
    if (inside := next(words, None)) is not None:
        return plain(inside)
    for end in _ends(f".{COMPILED}"):
        name = name.replace(end, end[-1])
    return name


def unprefixed(state: dict[str, object], own: Set[str]) -> dict[str, object]:
    """Strip a prefix that all names of a file share: `model.`, `backbone.`.

    Args:
        state: Tensors by their names in a file.
        own: Names in the model.

    Returns:
        The same tensors: under their names without what wrappers and one prefix put in front, where
        names in the model are found so; else as they were.
    """
    names = {key: key if key in own else plain(key) for key in state}
    if own.isdisjoint(names.values()):
        longest = max(own, key=len, default="")
        found = [n.removesuffix(longest) for n in names.values() if n.endswith(f".{longest}")]
        if len(found) == 1:  # of a teacher and a student none is chosen
            names = {key: name.removeprefix(found[0]) for key, name in names.items()}
    return {names[key]: value for key, value in state.items()}


def _ends(word: str) -> tuple[str, str]:
    return f"{word}.", f"{word}/"


def _inside(module: nn.Module) -> object:
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # not there: nothing was compiled
    compiled = (compiler.OptimizedModule,) if compiler else ()
    wrapping: Any = (*compiled, DataParallel, DistributedDataParallel)
    while isinstance(module, wrapping):
        module = module._orig_mod if isinstance(module, compiled) else module.module
    return module

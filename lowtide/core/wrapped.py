"""What compilers and data-parallel wrappers put around a model, and the names that gives."""

from __future__ import annotations

import sys
from typing import Any

from torch.nn.parallel import DataParallel, DistributedDataParallel

COMPILED, PARALLEL = "_orig_mod", "module"


def unwrapped(model: Any) -> Any:
    """Take off what `torch.compile` and data-parallel wrappers put around a model and its parts.

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


def plain(name: str) -> str:
    """Name a tensor as in a model that nothing is wrapped around.

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


def _ends(word: str) -> tuple[str, str]:
    return f"{word}.", f"{word}/"


def _inside(module: Any) -> Any:
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # not there: nothing was compiled
    compiled = (compiler.OptimizedModule,) if compiler else ()
    wrapping: Any = (*compiled, DataParallel, DistributedDataParallel)
    while isinstance(module, wrapping):
        module = module._orig_mod if isinstance(module, compiled) else module.module
    return module

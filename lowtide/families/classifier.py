"""Find a backbone's classifier, and replace it by a new one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from typing import Any, Literal, get_args

from torch import Tensor, nn

from ..core.graft import root
from ..core.wrapped import numbers_of
from ..errors import InputError, UnknownName
from ..versions import on_meta
from .meta_model import meta_copy

HeadInit = Literal["trunc_normal", "zero", "own"]
"""How a new classifier starts: weights truncated-normal with deviation 0.02 and biases at zero; the
map that gives the logits at zero; or as the backbone's library starts it."""
SPREAD = 0.02


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Find the classifier: the modules that are replaced for another number of classes.

    That may be more than `get_classifier` tells: a norm in front of the linear map, or several
    classifiers whose answers are averaged. Elsewhere it is the last Linear defined, and of a
    transformers model with several that give its labels, each of them.

    Args:
        model: The backbone.

    Returns:
        Paths of the classifier's modules; none for a headless backbone.
    """
    if not hasattr(model, "get_classifier"):
        linears = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Linear)]
        last = linears[-1][1] if linears else None
        labels = getattr(getattr(model, "config", None), "num_labels", None)
        return tuple(
            path
            for path, m in linears
            if m is last or ("." not in path and m.out_features == labels == last.out_features)  # type: ignore[union-attr]
        )
    found = model.get_classifier()  # type: ignore[operator]
    heads = found if isinstance(found, tuple | list) else (found,)
    told = tuple(p for p, m in model.named_modules() if any(m is head for head in heads))
    paths = (_renewed(model) or told) if hasattr(model, "reset_classifier") else told
    return tuple(c for path in paths for c in _called(model, path))


def outputs(model: nn.Module, heads: Iterable[str]) -> int:
    """Count the classes of a backbone's classifier.

    Args:
        model: The backbone; has a classifier.
        heads: Paths of the classifier's modules.

    Returns:
        How many logits it gives.

    Raises:
        InputError: Its classifier holds no linear map and no convolution.
    """
    for path in heads:
        if maps := _maps(model.get_submodule(path)):
            return len(maps[-1].weight)
    raise InputError(f"the classifier of {type(model).__name__} gives logits by no known map")


def logit_maps(model: nn.Module, heads: Iterable[str]) -> list[nn.Linear | nn.Conv2d]:
    """Find the maps that give the logits.

    Args:
        model: The backbone; methods may be in place around its classifier.
        heads: Paths of the classifier's modules.

    Returns:
        The last linear map or convolution of each of them that has one.
    """
    return [m for path in heads for m in _maps(root(model.get_submodule(path)))[-1:]]


def new_classifier(model: nn.Module, classes: int, init: HeadInit) -> dict[str, nn.Module]:
    """Make a classifier for another number of classes; the backbone keeps its own.

    Args:
        model: The backbone.
        classes: How many classes.
        init: How it starts.

    Returns:
        Its modules by path.

    Raises:
        InputError: Nothing tells how such a classifier is made.
    """
    like = numbers_of(model)
    if hasattr(model, "reset_classifier"):
        meta = meta_copy(model)
        _renew(meta, classes)
        made = {path: meta.get_submodule(path) for path in classifiers(meta)}
    else:
        made = {p: _widened(model.get_submodule(p), classes) for p in classifiers(model)}
    for module in made.values():
        module.to_empty(device=like.device).to(like.dtype)
        for m in module.modules():
            if hasattr(m, "reset_parameters"):
                m.reset_parameters()  # type: ignore[operator]
        start(module, init)
    return made


def reset(model: nn.Module, classes: int, init: HeadInit) -> None:
    """Give a backbone a new classifier.

    Args:
        model: The backbone; changed in place.
        classes: How many classes.
        init: How it starts.
    """
    like = numbers_of(model)
    _renew(model, classes)
    for path in classifiers(model):
        start(model.get_submodule(path).to(like.device, like.dtype), init)


def exchange_config(model: nn.Module, config: Any) -> object:
    """Give a transformers model a config; its loss reads the number of classes there.

    Args:
        model: Any model; changed in place if it has a config.
        config: What `config_of` or this gave; None leaves it.

    Returns:
        The one it had.
    """
    before = getattr(model, "config", None)
    if config is not None:
        model.config = config
        if hasattr(model, "num_labels") and "num_labels" in vars(model):
            model.num_labels = config.num_labels
    return before


def config_of(model: nn.Module, classes: int) -> object:
    """Make the config of a transformers model for another number of classes.

    Args:
        model: Any model.
        classes: Of the classifier that it is to have; 0 for none, as around a part that is tuned.

    Returns:
        A copy that names as many labels; None where the model has no config, or it fits.
    """
    config: Any = getattr(model, "config", None)
    if not classes or getattr(config, "num_labels", classes) == classes:
        return None
    made = copy.copy(config)
    made.num_labels = classes
    return made


def start(module: nn.Module, init: HeadInit) -> None:
    """Draw a new classifier's parameters.

    Args:
        module: One of its modules; changed in place.
        init: How it starts.

    Raises:
        UnknownName: There is no such start.
    """
    if init not in get_args(HeadInit):
        raise UnknownName("head_init", init, get_args(HeadInit))
    maps = _maps(module)
    for m in maps if init == "trunc_normal" else ():
        nn.init.trunc_normal_(m.weight, std=SPREAD)
        _zero(m.bias)
    for m in maps[-1:] if init == "zero" else ():
        _zero(m.weight)
        _zero(m.bias)


def _renew(model: Any, classes: int) -> None:
    """Call timm's; a distilled classifier stays one, as plain timm builds it."""
    choice = "distillation" in inspect.signature(model.reset_classifier).parameters
    distilled = choice and any(getattr(m, "distillation", False) for m in model.modules())
    model.reset_classifier(classes, **({"distillation": True} if distilled else {}))


def _renewed(model: nn.Module) -> tuple[str, ...]:
    """Find what `reset_classifier` replaces, outermost paths only."""
    meta: Any = meta_copy(model)
    before = dict(meta.named_modules(remove_duplicate=False))
    try:
        with on_meta():
            _renew(meta, (getattr(meta, "num_classes", 0) or 0) + 1)
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError):
        return ()
    new = [p for p, m in meta.named_modules() if before.get(p) is not m and _holds(model, p)]
    return tuple(p for p in new if not any(p.startswith(f"{other}.") for other in new))


def _holds(model: nn.Module, path: str) -> bool:
    """Whether the model has parameters at a path."""
    module = dict(model.named_modules(remove_duplicate=False)).get(path)
    return module is not None and next(module.parameters(), None) is not None


def _called(model: nn.Module, path: str) -> tuple[str, ...]:
    """Name what is called: a list of modules is not, its members are."""
    module = model.get_submodule(path)
    if isinstance(module, nn.ModuleList):
        return tuple(c for name in module._modules for c in _called(model, f"{path}.{name}"))
    return (path,) if next(module.parameters(), None) is not None else ()


def _widened(module: nn.Module, classes: int) -> nn.Module:
    if type(module) is not nn.Linear:
        raise InputError(
            f"a classifier for {classes} classes cannot be made in place of a"
            f" {type(module).__name__}; give the backbone one"
        )
    return nn.Linear(module.in_features, classes, module.bias is not None, device="meta")


def _maps(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def _zero(p: Tensor | None) -> None:
    if p is not None:
        nn.init.zeros_(p)

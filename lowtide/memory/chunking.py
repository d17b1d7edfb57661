"""Tells which modules treat the images of a batch one by one, so that it may be cut into chunks.

A shape proves nothing: `z @ z.T`, a loss, a batch norm take and give a row per image and mix them.
So a module counts only if its own code and that of everything in it was read: by the class it is,
with that class's own functions, without hooks, and in a state that draws nothing and uses no
statistics of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import timm.layers as layers
import torch
from torch import Tensor, nn
from torch.nn.modules import module as everywhere
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map
from torchvision.ops.misc import Permute

from ..core.wrapped import plain_kind
from ..ops.attention_chunks import ALIGNED

MLPS: tuple[type[nn.Module], ...] = (layers.ConvMlp, layers.GlobalResponseNormMlp)
"""Modules that treat every image by itself, if all they hold does, and are widest inside."""

POSITIONWISE: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Identity, nn.Dropout, nn.ModuleList, nn.ModuleDict, nn.ParameterDict),
    nn.ParameterList,
    *(nn.GELU, nn.SiLU, nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU),
    *(layers.GELU, layers.GELUTanh, layers.QuickGELU, layers.Swish),
    *(nn.LayerNorm, nn.RMSNorm, layers.LayerNorm, layers.RmsNorm),
)
"""Modules that map the last axis, whatever stands in front of it; a norm if it is over that axis.
"""

LEAST = 16
"""Fewer tokens than these stay with the chunk before: processors multiply a row or two otherwise.
"""

PACKAGE = __name__.partition(".")[0]
TORCH = (
    *("activation", "batchnorm", "container", "conv", "dropout", "flatten", "linear"),
    *("normalization", "padding", "pixelshuffle", "pooling", "upsampling"),
)
FILES = (
    *(f"torch.nn.modules.{file}." for file in TORCH),
    *("timm.layers.", "timm.models._", "torchvision.ops.misc.", "peft.tuners.lora.layer."),
    f"{PACKAGE}.",
)
"""Where classes stand whose code was read; a declared model's own file is added to them."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
AXES = ("dim", "axis", "start_dim")
DRAWS = ("p", "prob")

_models: set[tuple[str, str]] = set()
_token_mlps: set[type[nn.Module]] = {layers.Mlp, layers.GluMlp, layers.SwiGLU}


def declare(packages: Iterable[str], names: Iterable[str]) -> None:
    """Declare models that treat images one by one in their own `forward(images)`.

    Args:
        packages: How the dotted names of the files begin that define them.
        names: Names of their classes.
    """
    _models.update((package, name) for package in packages for name in names)


def declare_mlps(kinds: Iterable[type[nn.Module]]) -> None:
    """Declare modules that treat every token by itself and are widest inside.

    Args:
        kinds: The classes themselves: of a subclass nothing is known.
    """
    _token_mlps.update(kinds)


def is_model(kind: type[nn.Module]) -> bool:
    """Say whether a class is a model that is known to treat images one by one.

    Args:
        kind: The class itself: of a subclass nothing is known.

    Returns:
        Whether it was declared.
    """
    file = f"{kind.__module__}."
    return any(kind.__name__ == name and file.startswith(package) for package, name in _models)


def is_imagewise(module: nn.Module) -> bool:
    """Say whether a module is known to treat the images of a batch one by one.

    Args:
        module: Any module.

    Returns:
        Whether it and all it holds are known, and in a state that lets it.
    """
    if any(getattr(everywhere, f"_global{name}", None) for name in HOOKS):
        return False
    inside = list(module.modules())
    kinds = {plain_kind(m) for m in inside}
    declared = (kind for kind in kinds if is_model(kind) or kind in _token_mlps)
    files = (*FILES, *(f"{kind.__module__}." for kind in declared))
    if not all(_is_read(kind, files) for kind in kinds):
        return False
    return not any(_is_changed(m) or _mixes(m) for m in inside)


def sizes(
    module: nn.Module, chunk: int | None, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> list[int] | None:
    """Cut the input of a module into chunks of images, or of tokens.

    Args:
        module: Any module.
        chunk: Most numbers of a chunk; an MLP, wider inside, takes half. None cuts nothing.
        args: What it is called on.
        kwargs: The same by name.

    Returns:
        How many images, or tokens, to run at once, chunk by chunk; None for all.
    """
    kind = plain_kind(module)
    if chunk is None or torch.compiler.is_compiling() or len(args) != 1 or kwargs:
        return None
    (x,) = args
    if kind in _token_mlps or kind in MLPS:
        chunk = max(1, chunk // 2)
    elif not is_model(kind):
        return None
    if not isinstance(x, Tensor) or x.numel() <= chunk or not has_images(module, x):
        return None
    rows = -(-len(x) // min(len(x), -(-x.numel() // chunk)))
    if not is_imagewise(module):
        return None
    if (tokens := by_tokens(module, x, chunk)) is not None:
        return tokens
    count = -(-len(x) // rows)
    return [min(rows, len(x) - i * rows) for i in range(count)] if count > 1 else None


def run_in_chunks(forward: Callable[..., Any], x: Tensor, sizes: list[int]) -> object:
    """Run a module chunk by chunk; backward finishes one chunk before it begins the next.

    Args:
        forward: The module's own forward.
        x: Its one argument (N, ...), or (..., C) if tokens are cut.
        sizes: How many images, or tokens, each chunk has.

    Returns:
        What it gives, put together.
    """
    if sum(sizes) == len(x):
        results = [forward(part) for part in x.split(sizes)]
        return tree_map(lambda *parts: torch.cat(parts), *results)
    results = [forward(part) for part in x.flatten(0, -2).split(sizes)]
    return torch.cat(results).unflatten(0, x.shape[:-1])


def by_tokens(module: nn.Module, x: Tensor, most: int) -> list[int] | None:
    """Cut the tokens of an input that is large for one image.

    Args:
        module: A known module, imagewise.
        x: Its input (..., C).
        most: Numbers in a chunk.

    Returns:
        How many tokens to run at once, chunk by chunk; None if one chunk holds an image, or tokens
        may meet in the module.
    """
    tokens = x[..., 0].numel()
    if x.ndim < 2 or x.numel() <= most * len(x) or not is_tokenwise(module):
        return None
    return cut(tokens, most // x.shape[-1])


def cut(tokens: int, most: int) -> list[int] | None:
    """Cut tokens into chunks of a size that processors like.

    Args:
        tokens: How many there are.
        most: In a chunk, about.

    Returns:
        How many to run at once, chunk by chunk; None if one chunk holds all.
    """
    step = max(1, most // ALIGNED) * ALIGNED
    sizes = [step] * (tokens // step)
    left = tokens - sum(sizes)
    if left < LEAST and sizes:
        sizes[-1] += left
    else:
        sizes.append(left)
    return sizes if len(sizes) > 1 else None


def is_tokenwise(module: nn.Module) -> bool:
    """Say whether a module is an MLP that is known to treat every token by itself.

    Args:
        module: A known module, imagewise.

    Returns:
        Whether it and all it holds do.
    """
    inside = (m for m in module.modules() if m is not module)
    return plain_kind(module) in _token_mlps and all(_is_positionwise(m) for m in inside)


def _is_positionwise(module: nn.Module) -> bool:
    """Whether a module is known to map the last axis of whatever it is given."""
    kind = plain_kind(module)
    known = kind in POSITIONWISE or getattr(kind, "positionwise", False)
    if not known and not (
        kind.__name__ == "Linear" and kind.__module__ == "peft.tuners.lora.layer"
    ):
        return False
    return getattr(module, "axis", -1) == -1 and len(getattr(module, "normalized_shape", (1,))) == 1


def has_images(module: nn.Module, x: Tensor) -> bool:
    """Say whether the first axis of an input is that of the images.

    Args:
        module: A known module.
        x: Its input; torch's convolutions take a single image without that axis too.

    Returns:
        Whether it has as many axes as it must have.
    """
    grid = is_model(plain_kind(module)) or any(isinstance(m, _ConvNd) for m in module.modules())
    return x.ndim == 4 if grid else x.ndim > 1


def _is_read(kind: type[nn.Module], files: tuple[str, ...]) -> bool:
    """Whether the class stands in one of the files, and so do its functions."""
    if not f"{kind.__module__}.".startswith(files):
        return False
    own = (c for c in kind.__mro__ if issubclass(c, nn.Module) and c is not nn.Module)
    functions = (f for c in own for f in vars(c).values() if isinstance(f, FunctionType))
    known = (*files, "torch.", "timm.", "peft.")
    return all(f"{f.__module__}.".startswith(known) for f in functions)


def _is_changed(module: nn.Module) -> bool:
    """Whether something hooks into a module, or stands in the place of one of its functions."""
    if any(getattr(module, name, None) for name in HOOKS):
        return True
    return any(
        callable(v) and hasattr(plain_kind(module), name) for name, v in vars(module).items()
    )


def _mixes(module: nn.Module) -> bool:
    """Whether images meet in it: along the first axis, in statistics, or in the noise drawn."""
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        return True
    if any(_is_first(getattr(module, name, 1)) for name in AXES):
        return True
    if isinstance(module, Permute) and module.dims[0] != 0:
        return True
    if isinstance(module, _BatchNorm) and module.running_var is None:
        return True
    if not module.training:
        return False
    return "running_var" in module._buffers or any(_drawn(module))


def _is_first(axis: object) -> bool:
    """Whether an axis may be the first one, which it is to some inputs if counted from the end."""
    return axis is None or isinstance(axis, int) and axis != -1 and axis <= 0


def _drawn(module: nn.Module) -> Iterator[bool]:
    if isinstance(module, nn.RReLU):
        yield True
    drops = "Drop" in plain_kind(module).__name__
    for name, value in vars(module).items():
        if isinstance(value, float | int) and ("drop" in name or drops and name in DRAWS):
            yield value > 0

"""Tells which sequences of layers read a few rows of a map for each row they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm import layers
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.wrapped import plain_kind
from ..ops.bands import Read, Rows, banded
from ..ops.fan import LARGE
from .chunking import declare, is_imagewise, is_model
from .mode import Answers, silence

POINTWISE: tuple[type[nn.Module], ...] = (
    *(nn.Identity, nn.Dropout, nn.Dropout2d),
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU),
    *(layers.GELU, layers.GELUTanh, layers.QuickGELU, layers.Swish, layers.LayerNorm2d),
)
"""Modules that keep the rows of a map apart, in a state that draws nothing."""

PROPOSALS = "RPNHead"
"""torchvision's head of a region proposal network: a convolution, and two beside each other."""

declare(("torchvision.models.detection.rpn",), (PROPOSALS,))


def run_in_bands(
    module: nn.Module,
    mode: Answers,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, object],
) -> Any:
    """Run layers on large maps so that backward recomputes them a band of rows at a time.

    They begin with a convolution that trains, whose input is kept in any case, and everything in
    them was read: convolutions that keep the size, deconvolutions that enlarge every pixel by
    itself, functions of each number, norms over channels, batch norms in evaluation. They follow
    one another in a sequence, or are the head of a region proposal network, which has several maps.

    Args:
        module: Any module.
        mode: What answers; it is entered.
        forward: The module's own forward.
        args: What it is called on.
        kwargs: The same by name.

    Returns:
        What it gives; `NotImplemented` where the module is not such, or nothing inside is large.
    """
    if mode.policy.chunk is None or "conv" not in mode.codecs() or kwargs or len(args) != 1:
        return NotImplemented
    if torch.compiler.is_compiling():
        return NotImplemented
    if is_sequence(module) and isinstance(args[0], Tensor):
        result = _banded(module, mode, forward, args[0])
        return NotImplemented if result is None else result
    if not is_model(plain_kind(module)) or plain_kind(module).__name__ != PROPOSALS:
        return NotImplemented
    counts = [module.cls_logits.out_channels, module.bbox_pred.out_channels]  # type: ignore[union-attr]

    def both(x: Tensor) -> Tensor:
        scores, boxes = forward([x])
        return torch.cat([scores[0], boxes[0]], 1)

    found = [_banded(module, mode, both, x) for x in args[0]]
    each = [
        [part[0] for part in forward([x])] if y is None else y.split(counts, 1)
        for x, y in zip(args[0], found, strict=True)
    ]
    return tuple(map(list, zip(*each, strict=True)))


def _banded(
    module: nn.Module, mode: Answers, forward: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor | None:
    """Run layers on a map; None if it is small, or they are not known to keep rows apart."""
    if x.ndim != 4 or not x.is_floating_point() or not x.numel():
        return None
    rows = rows_of(module, x.shape[1])
    if rows is None or len(x) * x.shape[2] * x.shape[3] * rows.widest < LARGE:
        return None
    if not is_imagewise(module) or not _is_same_dtype(module, x):
        return None

    def run(part: Tensor) -> Tensor:
        with silence():
            return forward(part)

    inside = x.shape[2] * x.shape[3] * rows.widest
    together = max(1, (mode.policy.chunk or inside) // inside)
    return banded(Read(run, rows, together), mode.codecs()["conv"], x, *module.parameters())


def _is_same_dtype(module: nn.Module, x: Tensor) -> bool:
    if torch.is_autocast_enabled(x.device.type):
        return True
    return all(p.dtype == x.dtype for p in module.parameters())


def rows_of(module: nn.Module, channels: int) -> Rows | None:
    """Say what layers read that follow one another; of those side by side, no more than that.

    Args:
        module: Holds them.
        channels: Of its input.

    Returns:
        What they read; None if they do not begin with a convolution that trains and go on, or one
        of them is not known to keep rows apart.
    """
    layers = [layer for child in module.children() for layer in _flat(child)]
    if len(layers) < 2 or not isinstance(layers[0], nn.Conv2d | nn.ConvTranspose2d):
        return None
    if not layers[0].weight.requires_grad:
        return None
    times, wrong, widest = 1, 0, channels
    for layer in layers:
        if (step := _step(layer)) is None:
            return None
        enlarged, reach = step
        times, wrong = times * enlarged, wrong * enlarged + reach
        channels = getattr(layer, "out_channels", channels)
        widest = max(widest, channels * times**2)
    return Rows(times, -(-wrong // times), widest)


def is_sequence(module: nn.Module) -> bool:
    """Say whether a module runs its children one after the other and does nothing else.

    Args:
        module: Any module.

    Returns:
        Whether its forward is that of `Sequential`.
    """
    return plain_kind(module).forward is nn.Sequential.forward


def _flat(module: nn.Module) -> list[nn.Module]:
    """List the layers of sequences in sequences."""
    if not is_sequence(module):
        return [module]
    return [layer for child in module.children() for layer in _flat(child)]


def _step(layer: Any) -> tuple[int, int] | None:
    """Say how many rows a layer makes of one, and how far beside it reads."""
    kind = plain_kind(layer)
    if kind in POINTWISE or issubclass(kind, _BatchNorm) and not layer.training:
        return 1, 0
    if kind is nn.Conv2d and layer.padding_mode == "zeros" and set(layer.stride) == {1}:
        taps = zip(layer.kernel_size, layer.dilation, strict=True)
        whole = [d * (k - 1) for k, d in taps]
        padding = layer.padding
        if padding == "same" and not any(n % 2 for n in whole):
            padding = tuple(n // 2 for n in whole)
        return (1, whole[0] // 2) if [2 * n for n in padding] == whole else None
    if kind is nn.ConvTranspose2d and layer.kernel_size == layer.stride:
        plain = {*layer.padding, *layer.output_padding, 0} == {0} and {*layer.dilation} == {1}
        square = len(set(layer.stride)) == 1
        return (layer.stride[0], 0) if plain and square else None
    return None

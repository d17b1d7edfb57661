"""Activation functions: GELU, quick-GELU, SiLU, hard-swish, ReLU, ReLU6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.activations import QuickGELU, Swish
from torch import Tensor, nn

from ..codecs.base import Residue
from . import slopes
from .saved import Answer, Call, Codecs, Forward, Needs, Op, Tensors, saved

Slope = Callable[[Tensor], Tensor]


def _forward(needs: Needs, x: Tensor, *, call: Slope, slope: Slope) -> Forward:
    return Forward(call(x), (Residue(x, slope, pointwise=True),))


def _backward(
    needs: Needs, residues: tuple[Tensor], extras: Tensors, dy: Tensor, *, call: Slope, slope: Slope
) -> tuple[Tensor]:
    return (dy * residues[0],)


UNARY = Op(_forward, _backward, scales=True)
"""y = f(x), dx = dy f'(x). Residue: the slope f'(x), made from x slice by slice.

Options: `call` is f, `slope` is f'.

Saves:
    What the codec keeps of n numbers.
"""

SLOPES: dict[str, Slope] = {
    "gelu": slopes.gelu,
    "gelu_tanh": slopes.gelu_tanh,
    "quick_gelu": slopes.quick_gelu,
    "silu": slopes.silu,
    "hardswish": slopes.hardswish,
    "relu": slopes.relu,
    "relu6": slopes.relu6,
}


def activate(name: str, codecs: Codecs, function: Slope, x: Tensor) -> Any:
    """Answer a call of an activation function.

    Args:
        name: Name of the function, a key of `SLOPES`.
        codecs: Codec of each op.
        function: The function itself; it may be any code that computes it.
        x: Its input.

    Returns:
        Its result, or `NotImplemented` if there is nothing to keep or no codec for it.
    """
    if name not in codecs or not x.requires_grad:
        return NotImplemented
    return saved(UNARY, codecs[name], x, call=function, slope=SLOPES[name])


def _gelu(codecs: Codecs, call: Call) -> Any:
    form = call.kwargs.get("approximate", "none")
    name = "gelu_tanh" if form == "tanh" else "gelu"
    return activate(name, codecs, lambda x: F.gelu(x, approximate=form), call.argument(0, "input"))


def _hardtanh(codecs: Codecs, call: Call) -> Any:
    bounds = call.argument(1, "min_val", -1.0), call.argument(2, "max_val", 1.0)
    # nn.ReLU6 is a hard tanh between 0 and 6.
    if bounds != (0, 6):
        return NotImplemented
    x, in_place = call.argument(0, "input"), call.argument(3, "inplace", False)
    return _RELU6(codecs, Call(F.relu6, (x, in_place), {}))


def _answer(name: str, plain: Slope, in_place: bool = False) -> Answer:
    def answer(codecs: Codecs, call: Call) -> Any:
        x = call.argument(0, "input")
        y = activate(name, codecs, plain, x)
        if y is NotImplemented or not (in_place or call.argument(1, "inplace", False)):
            return y
        # The slope is kept, not x, so x may be overwritten.
        return x.copy_(y)

    return answer


_RELU6 = _answer("relu6", F.relu6)
NAMES = tuple(SLOPES)
CALLS: dict[Callable[..., Any], Answer] = {
    F.gelu: _gelu,
    F.silu: _answer("silu", F.silu),
    F.hardswish: _answer("hardswish", F.hardswish),
    F.relu: _answer("relu", F.relu),
    torch.relu: _answer("relu", F.relu),
    Tensor.relu: _answer("relu", F.relu),
    torch.relu_: _answer("relu", F.relu, in_place=True),
    Tensor.relu_: _answer("relu", F.relu, in_place=True),
    F.relu6: _RELU6,
    F.hardtanh: _hardtanh,
}

MODULES: dict[type[nn.Module], str] = {QuickGELU: "quick_gelu", Swish: "silu"}
"""Modules that write out an activation function as several torch functions."""

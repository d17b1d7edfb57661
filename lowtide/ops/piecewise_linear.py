"""Piecewise linear functions: leaky ReLU, clamp, hard tanh, hard sigmoid, threshold, abs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..codecs.base import Codec
from ..codecs.codebook import Codebook
from ..codecs.sign import Sign
from ..kernels.threshold_codes import REACH
from . import activation_derivatives as slopes
from .formula import written
from .saved import Answer, Call, Calls, Codecs, Result, saved
from .unary import UNARY, activate, answer, case, overwritten

Function = Callable[[Tensor], Tensor]


def _bend(
    name: str,
    codecs: Codecs,
    function: Function,
    x: Tensor,
    ends: tuple[float, float],
    inside: float = 1.0,
    outside: float = 0.0,
    closed: bool = False,
) -> Result:
    """Answer a function with one slope between two ends and another around them."""
    if name not in codecs or not x.requires_grad or inside == outside or not ends[0] < ends[1]:
        return NotImplemented
    # Torch compares with the ends as numbers of x's dtype.
    least, most = _rounded(ends, x.dtype)
    if any(abs(end) >= REACH and math.isfinite(end) for end in (least, most)):
        return NotImplemented
    low, high = sorted((inside, outside))
    codec = codecs[name]
    # One bit says which of the two slopes it is, whatever they are.
    codec = Codebook((low, high), (low, high)) if isinstance(codec, Sign) else codec
    slope = slopes.between(least, most, inside, outside, closed)
    return saved(UNARY, codec, x, call=function, slope=slope)


@torch.compiler.assume_constant_result
def _rounded(ends: tuple[float, float], dtype: torch.dtype) -> tuple[float, float]:
    with _disable_current_modes():
        least, most = torch.tensor(ends, dtype=dtype, device="cpu").tolist()
    return least, most


def _leaky_relu(codecs: Codecs, call: Call) -> Result:
    x, below = call.argument(0, "input"), call.argument(1, "negative_slope", 0.01)
    ends = (0.0, math.inf)
    y = _bend("leaky_relu", codecs, lambda x: F.leaky_relu(x, below), x, ends, 1.0, below)
    return overwritten(x, y, call.argument(2, "inplace", False))


def _hardtanh(codecs: Codecs, call: Call) -> Result:
    x = call.argument(0, "input")
    ends = call.argument(1, "min_val", -1.0), call.argument(2, "max_val", 1.0)
    name = "relu6" if ends == (0, 6) else "clamp"  # nn.ReLU6 calls it so
    y = _bend(name, codecs, lambda x: F.hardtanh(x, *ends), x, ends)
    return overwritten(x, y, call.argument(3, "inplace", False))


def _relu6(codecs: Codecs, call: Call) -> Result:
    x, in_place = call.argument(0, "input"), call.argument(1, "inplace", False)
    return _hardtanh(codecs, Call(F.hardtanh, (x, 0.0, 6.0, in_place), {}))


def _hardsigmoid(codecs: Codecs, call: Call) -> Result:
    x = call.argument(0, "input")
    y = activate("hardsigmoid", codecs, F.hardsigmoid, x, slopes.hardsigmoid)
    return overwritten(x, y, call.argument(1, "inplace", False))


def _threshold(codecs: Codecs, call: Call) -> Result:
    x, at, value = (call.argument(i, n) for i, n in enumerate(("input", "threshold", "value")))
    y = _bend("clamp", codecs, lambda x: F.threshold(x, at, value), x, (at, math.inf))
    return overwritten(x, y, call.argument(3, "inplace", False))


def _clamp(in_place: bool = False, least: bool = True, most: bool = True) -> Answer:
    def answered(codecs: Codecs, call: Call) -> Result:
        x = call.argument(0, "input")
        low = call.argument(1, "min") if least else None
        high = call.argument(1 + least, "max") if most else None
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            return NotImplemented
        ends = (-math.inf if low is None else low, math.inf if high is None else high)
        y = _bend("clamp", codecs, lambda x: torch.clamp(x, low, high), x, ends, closed=True)
        return overwritten(x, y, in_place)

    return answered


_ABS = answer("abs", torch.abs, slope=torch.sign)
TIGHT: dict[str, Codec] = {
    **dict.fromkeys(("leaky_relu", "clamp"), Sign()),
    "hardsigmoid": Codebook((0.0, 1 / 6), (0.0, 1 / 6)),
    "abs": Codebook((-1.0, 0.0, 1.0), (-1.0, 1.0)),
}
CALLS: Calls = {
    F.leaky_relu: _leaky_relu,
    F.hardtanh: written(_hardtanh),
    F.relu6: written(_relu6),
    F.hardsigmoid: written(_hardsigmoid),
    F.threshold: _threshold,
    **dict.fromkeys((torch.clamp, Tensor.clamp, torch.clip, Tensor.clip), written(_clamp())),
    **dict.fromkeys((torch.clamp_min, Tensor.clamp_min), written(_clamp(most=False))),
    **dict.fromkeys((torch.clamp_max, Tensor.clamp_max), written(_clamp(least=False))),
    **dict.fromkeys((torch.clamp_, Tensor.clamp_, Tensor.clip_), written(_clamp(in_place=True))),
    **dict.fromkeys((torch.abs, Tensor.abs, Tensor.__abs__), _ABS),
}
CASES = {
    "leaky_relu": case(lambda x: F.leaky_relu(x, 0.2), slopes.between(0, math.inf, 1.0, 0.2)),
    "hardtanh": case(lambda x: F.hardtanh(x, -0.5, 1.0), slopes.between(-0.5, 1.0, 1.0)),
    "hardsigmoid": case(F.hardsigmoid, slopes.hardsigmoid),
    "clamp": case(lambda x: x.clamp(-0.5, 0.8), slopes.between(-0.5, 0.8, 1.0, closed=True)),
    "abs": case(torch.abs, torch.sign),
}

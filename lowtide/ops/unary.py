"""Activation functions: GELU, quick-GELU, SiLU, hard-swish, ReLU, ReLU6."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.activations import QuickGELU, Swish
from torch import Tensor, nn

from ..codecs.affine import Affine, Rounding
from ..codecs.base import Codec, Residue
from ..codecs.codebook import Codebook
from ..codecs.exact import Exact
from ..codecs.sign import Sign
from ..codecs.sine import Sine
from ..kernels.activation import FUNCTIONS as FUSABLE
from ..kernels.activation import activation_pack
from ..kernels.threshold_codes import threshold_table
from . import activation_derivatives as slopes
from .case import Case
from .lineage import follow, pass_on
from .region import discards
from .saved import Answer, Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved
from .spare import moved

Slope = Callable[[Tensor], Tensor]
Cuts = tuple[float, ...]
FUSED = {"cuda"}
"""Devices with a kernel that gives a function and its slope's codes."""
FOLLOWED = (F.relu, torch.relu, Tensor.relu)


def _forward(
    needs: Needs, x: Tensor, *, call: Slope, slope: Slope, at_once: Cuts | None = None
) -> Forward:
    y, packed = (call(x), None) if at_once is None else _at_once(x, call, slope, at_once)
    # The slope of a ReLU is that of its result, which the next layer may keep.
    source = y if slope in (slopes.relu, slopes.relu6) else x
    return Forward(y, (Residue(source, slope, pointwise=True),), packed=packed)


def _at_once(
    x: Tensor, call: Slope, slope: Slope, cuts: Cuts
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Compute a function and the codes of its slope in one kernel, where there is one."""
    name = next((n for n, f in FUSABLE.items() if f is call), None)
    if name is None or discards() or torch.compiler.is_compiling():
        return call(x), None
    edges, codes = threshold_table(slope, cuts)
    bits = len(cuts).bit_length()
    y, packed = activation_pack(x, name, list(edges), list(codes), bits)
    return y, (packed,)


def _backward(
    needs: Needs, residues: tuple[Tensor], extras: Tensors, dy: Tensor, **options: object
) -> tuple[Tensor]:
    return (dy * residues[0],)


UNARY = Op(_forward, _backward, scales=True)
"""y = f(x), dx = dy f'(x). Residue: the slope f'(x), made from x slice by slice.

Options: `call` is f, `slope` is f', `at_once` are the cuts between the codec's codes: with them, on
a GPU f(x) and the codes come of one reading of x, the numbers those of torch's f to the last bit.

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


def activate(
    name: str, codecs: Codecs, function: Slope, x: Tensor, slope: Slope | None = None
) -> Result:
    """Answer a call of an activation function.

    Args:
        name: Name of the function in a policy.
        codecs: Codec of each op.
        function: The function itself; it may be any code that computes it.
        x: Its input.
        slope: Its slope, always the same object, for the codes' edges are found once for each; left
            out for those of `SLOPES`.

    Returns:
        Its result, or `NotImplemented` if there is nothing to keep or no codec for it.
    """
    if name not in codecs or not x.requires_grad:
        return NotImplemented
    codec = codecs[name]
    options: dict[str, object] = {"call": function, "slope": slope or SLOPES[name]}
    if x.device.type in FUSED and isinstance(codec, Codebook | Sign):
        options["at_once"] = codec.cuts
    return saved(UNARY, codec, x, **options)


def answer(
    name: str, function: Slope, in_place: bool = False, slope: Slope | None = None
) -> Answer:
    """Make the answer to a function `f(x, inplace=False)`.

    Args:
        name: Its name in a policy.
        function: The function, not in place.
        in_place: Whether what is called writes into x whatever its arguments say.
        slope: Its slope; left out for those of `SLOPES`.

    Returns:
        What answers it.
    """

    def answered(codecs: Codecs, call: Call) -> Result:
        x = call.argument(0, "input")
        y = activate(name, codecs, function, x, slope)
        if not torch.compiler.is_compiling() and y is not NotImplemented and function in FOLLOWED:
            follow(function, (x,), {}, y)  # before x is written to
        return overwritten(x, y, in_place or call.argument(1, "inplace", False))

    return answered


def overwritten(x: Tensor, y: Result, in_place: bool) -> Result:
    """Write a result where its input was, if that was asked for.

    Args:
        x: The input; what is kept of it is another tensor.
        y: The result, or `NotImplemented`.
        in_place: Whether to.

    Returns:
        The result.
    """
    if not in_place or y is NotImplemented:
        return y
    x.copy_(y)
    moved(y, x)
    pass_on(y, x)
    return x


def into_first(name: str, answer: Answer) -> Answer:
    """Make the answer to a call that writes its result into its first argument.

    Args:
        name: Its name in a policy.
        answer: Answers the call that does not.

    Returns:
        What answers it.
    """

    def answered(codecs: Codecs, call: Call) -> Result:
        x, *others = call.args
        # What is kept as it is must not be written to.
        kept = x.clone() if isinstance(codecs.get(name), Exact) else x
        return overwritten(x, answer(codecs, call._replace(args=(kept, *others))), in_place=True)

    return answered


def case(function: Slope, slope: Slope) -> Case:
    """Make the example of an activation function for the laws.

    Args:
        function: The function.
        slope: Its slope.

    Returns:
        The example.
    """
    shape, options = (3, 7, 5), {"call": function, "slope": slope}
    return Case(UNARY, (shape,), function, lambda n: [shape], options, made=True, linear=True)


def _gelu(codecs: Codecs, call: Call) -> Result:
    form = call.kwargs.get("approximate", "none")
    name = "gelu_tanh" if form == "tanh" else "gelu"
    function = F.gelu if form == "none" else partial(F.gelu, approximate=form)
    return activate(name, codecs, function, call.argument(0, "input"))


TIGHT: dict[str, Codec] = {
    **{name: Codebook.of(name) for name in SLOPES if not name.startswith("relu")},
    # Its slope rises evenly, and networks have it dozens of times in a row: sixteen fixed levels
    # are 2 % of the gradient's direction off in the end, 32 of each group's own are not.
    "hardswish": Affine(5, 64, stats=torch.bfloat16),
    "relu": Sign(),
    "relu6": Sign(),
}
S2A: dict[str, Callable[[Rounding], Codec]] = {
    "gelu": lambda rounding: Sine(rounding=rounding),
    "gelu_tanh": lambda rounding: Sine(rounding=rounding),
    "quick_gelu": lambda rounding: Sine(rounding=rounding),
    "silu": lambda rounding: Sine(rate=1.0, rounding=rounding),
    "relu": lambda rounding: Sign(),
}
CALLS: Calls = {
    F.gelu: _gelu,
    F.silu: answer("silu", F.silu),
    F.hardswish: answer("hardswish", F.hardswish),
    F.relu: answer("relu", F.relu),
    torch.relu: answer("relu", F.relu),
    Tensor.relu: answer("relu", F.relu),
    torch.relu_: answer("relu", F.relu, in_place=True),
    Tensor.relu_: answer("relu", F.relu, in_place=True),
}

MODULES: dict[type[nn.Module], str] = {QuickGELU: "quick_gelu", Swish: "silu"}
"""Modules that write out an activation function as several torch functions."""

FUNCTIONS: dict[str, Slope] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(slopes.QUICK * x),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "relu": F.relu,
    "relu6": F.relu6,
}
CASES = {name: case(function, SLOPES[name]) for name, function in FUNCTIONS.items()}

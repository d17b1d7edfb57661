"""Activation functions written out: `x * torch.sigmoid(1.702 * x)` is one function of x."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..codecs.affine import Affine
from ..codecs.base import Codec
from ..codecs.codebook import Codebook
from .saved import Answer, Call, Calls, Codecs, Result, saved
from .unary import FUNCTIONS, UNARY, overwritten

Function = Callable[..., Tensor]

ROOTS = 4
"""How many tensors back a function is followed."""
LONGEST = 32
"""Calls in the longest one."""
CLOSE = 1e-5
"""How near a function lies to the one it is taken for, on `GRID`."""
GRID = (-12.0, 12.0, 4801)

PLAIN: dict[Function, Function] = {
    **dict.fromkeys((Tensor.add_, Tensor.__iadd__), torch.add),
    **dict.fromkeys((Tensor.sub_, Tensor.__isub__), torch.sub),
    **dict.fromkeys((Tensor.mul_, Tensor.__imul__), torch.mul),
    **dict.fromkeys((Tensor.div_, Tensor.__itruediv__), torch.div),
}
"""What calls that write into their first argument compute."""

WRITTEN: dict[str, Function] = {
    **{name: function for name, function in FUNCTIONS.items() if not name.startswith("relu")},
    "mish": F.mish,
}
"""The functions that are known when they are met."""


@dataclass(frozen=True)
class Formula:
    """A function of each number of one tensor by itself, as the calls that compute it.

    Two of the same calls are equal, so that what is found out about one is known of the other.

    Attributes:
        function: The last call; None stands for x.
        args: Its arguments by place; functions of x, and numbers.
        kwargs: Its arguments by name.
        calls: How many calls there are.
    """

    function: Function | None = None
    args: tuple[object, ...] = ()
    kwargs: tuple[tuple[str, object], ...] = ()
    calls: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Make the calls.

        Args:
            x: Any shape.

        Returns:
            What the last one gives.
        """
        if self.function is None:
            return x
        args = (a(x) if isinstance(a, Formula) else a for a in self.args)
        kwargs = {k: a(x) if isinstance(a, Formula) else a for k, a in self.kwargs}
        result: Tensor = self.function(*args, **kwargs)
        return result


X = Formula()


@dataclass(frozen=True)
class Slope:
    """The slope of a function that is written out.

    Attributes:
        formula: The function.
    """

    formula: Formula

    def __call__(self, x: Tensor) -> Tensor:
        """Differentiate it.

        Args:
            x: Any shape.

        Returns:
            The slope.
        """
        with torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.formula(at).sum(), at)
        return slope


@functools.lru_cache(1024)
def known(formula: Formula) -> tuple[str, float] | None:
    """Say which function a formula computes.

    Args:
        formula: A function that is written out.

    Returns:
        Its name in a policy and a positive factor before it, or None.
    """
    with _disable_current_modes(), torch.no_grad():
        x = torch.linspace(*GRID, dtype=torch.float64, device="cpu")
        y = formula(x.clone())
        for name, function in WRITTEN.items():
            plain = function(x)
            factor = float(y[-1] / plain[-1])
            if factor > 0 and bool(((y / factor - plain).abs() <= CLOSE).all()):
                return name, factor
    return None


def written(answer: Answer | None = None) -> Answer:
    """Recognise activation functions that are written out as several calls.

    The known one keeps the codes of its slope, and what led to it goes with the tensors in between.

    Args:
        answer: What answers the function otherwise.

    Returns:
        What answers it.
    """

    def answered(codecs: Codecs, call: Call) -> Result:
        result: Result = NotImplemented
        # Before the call, for it may be in place.
        roots = () if torch.compiler.is_compiling() else tuple(_applied(call))
        if len([a for a in (*call.args, *call.kwargs.values()) if isinstance(a, Tensor)]) > 1:
            result = _whole(codecs, call, roots)
        if result is NotImplemented and answer is not None:
            result = answer(codecs, call)
        if result is NotImplemented and roots:
            result = call.function(*call.args, **call.kwargs)
        if roots and isinstance(result, Tensor):
            result.__dict__["_lowtide_formulas"] = (result._version, roots)
        return result

    return answered


Root = tuple["weakref.ref[Tensor]", int, Formula]


def _roots(tensor: Tensor) -> dict[int, Root]:
    """Give what a tensor is a function of, the nearest first: itself to begin with."""
    version, roots = tensor.__dict__.get("_lowtide_formulas", (None, ()))
    alive = roots if version == tensor._version else ()
    found: dict[int, Root] = {id(tensor): (weakref.ref(tensor), tensor._version, X)}
    for ref, at, formula in alive:
        if (root := ref()) is not None and root._version == at:
            found[id(root)] = ref, at, formula
    return found


def _applied(call: Call) -> Iterator[Root]:
    """Give what the result of a call is a function of."""
    arguments = (*call.args, *call.kwargs.values())
    tensors = {id(a): a for a in arguments if isinstance(a, Tensor)}
    if not tensors or any(not t.requires_grad for t in tensors.values()):
        return
    each = {key: _roots(t) for key, t in tensors.items()}
    first, *others = each.values()
    shared = [key for key in first if all(key in other for other in others)]
    for key in shared[:ROOTS]:
        formulas = {i: roots[key][2] for i, roots in each.items()}

        def of(a: object, formulas: dict[int, Formula] = formulas) -> object:
            return formulas[id(a)] if isinstance(a, Tensor) else a

        args = tuple(map(of, call.args))
        kwargs = tuple((name, of(a)) for name, a in sorted(call.kwargs.items()))
        if not all(
            isinstance(a, (Formula, int, float, str, bool)) for a in (*args, *dict(kwargs).values())
        ):
            return
        calls = 1 + sum(f.calls for f in formulas.values())
        if calls <= LONGEST:
            ref, at, _ = first[key]
            yield ref, at, Formula(PLAIN.get(call.function, call.function), args, kwargs, calls)


def _whole(codecs: Codecs, call: Call, roots: tuple[Root, ...]) -> Result:
    """Answer a call that completes a known function of one tensor."""
    tensors = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, Tensor)]
    for ref, _, formula in roots:
        x = ref()
        # Who asks for a gradient on the way gets it.
        watched = any(t is not x and (t.retains_grad or t._backward_hooks) for t in tensors)
        if x is None or watched or (found := known(formula)) is None or found[0] not in codecs:
            continue
        if any(t.dtype != x.dtype for t in tensors):
            continue
        codec = _times(codecs[found[0]], found[1])
        if codec is None:
            continue
        y = saved(UNARY, codec, x, call=_once(call), slope=Slope(formula))
        return overwritten(tensors[0], y, call.function in PLAIN)
    return NotImplemented


def _once(call: Call) -> Function:
    given = [call]

    def once(x: Tensor) -> Tensor:
        # The op keeps its options: they must not hold the tensors.
        function, args, kwargs = given.pop()
        y: Tensor = PLAIN.get(function, function)(*args, **kwargs)
        return y

    return once


def _times(codec: Codec, factor: float) -> Codec | None:
    """Give the codec of a slope times a factor."""
    if abs(factor - 1) <= CLOSE or isinstance(codec, Affine):  # a group's range is its own
        return codec
    if not isinstance(codec, Codebook):
        return None
    low, high = codec.reach
    levels = tuple(level * factor for level in codec.levels)
    return dataclasses.replace(codec, levels=levels, reach=(low * factor, high * factor))


_SUMS = (
    *(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__),
    *(torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__, torch.rsub),
    *(Tensor.sub_, Tensor.__isub__),
    *(torch.neg, Tensor.neg, Tensor.__neg__, torch.erf, Tensor.erf),
    *(torch.reciprocal, Tensor.reciprocal),
)
FOLLOWED = (
    *(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, torch.sub, Tensor.sub),
    *(Tensor.__sub__, torch.neg, Tensor.neg, Tensor.__neg__),
)
CALLS: Calls = dict.fromkeys(_SUMS, written())

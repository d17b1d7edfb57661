"""Functions whose gradient is computed from what is kept of their inputs: powers, GLU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from ..codecs.exact import Exact
from .case import Case, Shape
from .formula import written
from .saved import SMALL, Answer, Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

Function = Callable[..., Tensor]
Shapes = tuple[torch.Size, ...]
Places = tuple[tuple[int, str], ...]
Reads = Callable[[Needs], Sequence[bool]]


def _forward(
    needs: Needs, *tensors: Tensor, function: Function, reads: Reads, shapes: Shapes, **_: object
) -> Forward:
    kept = list(_kept(reads(needs), shapes))
    residues = tuple(Residue(t) for t, codes in zip(tensors, kept, strict=True) if codes)
    as_is = tuple(t for t, codes in zip(tensors, kept, strict=True) if codes is False)
    return Forward(function(*tensors), residues, as_is)


def _backward(
    needs: Needs,
    residues: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    function: Function,
    reads: Reads,
    shapes: Shapes,
    low: torch.dtype | None = None,
) -> Tensors:
    coded, as_is, given = iter(residues), iter(extras), []
    for codes, shape in zip(_kept(reads(needs), shapes), shapes, strict=True):
        # Of what is not read, the shape alone is looked at.
        t = dy.new_zeros(1).expand(shape) if codes is None else next(coded if codes else as_is)
        assert t is not None
        given.append(t.detach())
    wanted = [t.requires_grad_() for t, need in zip(given, needs, strict=True) if need]
    device = "cpu" if dy.is_meta else dy.device.type
    with torch.enable_grad(), torch.autocast(device, low, enabled=low is not None):
        y = function(*given)
    found = iter(torch.autograd.grad(y, wanted, dy))
    return tuple(next(found) if need else None for need in needs)


FROM_INPUTS = Op(_forward, _backward)
"""y = f(a, b, ...); the gradients are torch's own, of f at what is kept of its arguments.

For functions whose gradient is smooth in their arguments. Residues: the arguments that the
gradients read. Extras: those of them that are `SMALL` beside the others. Options: `function` is f;
`reads` says of which arguments the gradients asked for are made; `shapes` of all of them; `low` is
autocast's dtype.

Saves:
    What the codec keeps of the numbers in the arguments; a product that reads one shares them.
"""


def _kept(reads: Sequence[bool], shapes: Shapes) -> Iterator[bool | None]:
    """Say of each argument whether it is kept in codes, as it is (False), or not at all (None)."""
    most = max(shape.numel() for shape in shapes)
    return (s.numel() * SMALL > most if r else None for r, s in zip(reads, shapes, strict=True))


def from_inputs(
    name: str,
    codecs: Codecs,
    call: Call,
    places: Places,
    reads: Reads,
    exact: tuple[int, ...] = (),
) -> Result:
    """Answer a call of a function with a smooth gradient.

    Args:
        name: Name of the op in a policy.
        codecs: Codec of each op.
        call: The call.
        places: Its tensors: place and name of each argument.
        reads: Which of them the gradients read that are asked for.
        exact: Which of them are kept exactly, by their place among `places`.

    Returns:
        Its result, or `NotImplemented` if what is read is small.
    """
    tensors = [call.argument(*place) for place in places]
    if name not in codecs or not all(isinstance(t, Tensor) for t in tensors):
        return NotImplemented
    shapes, needs = tuple(t.shape for t in tensors), tuple(t.requires_grad for t in tensors)
    kept = list(_kept(reads(needs), shapes))
    if torch.compiler.is_compiling() or not tensors[0].is_floating_point() or not any(needs):
        return NotImplemented
    if any(reads(needs)) and not any(kept):
        return NotImplemented
    each = tuple(Exact() if i in exact else codecs[name] for i, codes in enumerate(kept) if codes)
    function = function_of(call, places)
    device = tensors[0].device.type
    cast = device != "meta" and torch.is_autocast_enabled(device)
    low = torch.get_autocast_dtype(device) if cast else None
    options = {"function": function, "reads": reads, "shapes": shapes, "low": low}
    return saved(FROM_INPUTS, each, *tensors, **options)


def function_of(call: Call, places: Places) -> Function:
    """Give a call as a function of its tensors; it holds none of them.

    Args:
        call: The call.
        places: Its tensors: place and name of each argument.

    Returns:
        The function.
    """
    args, kwargs = list(call.args), dict(call.kwargs)
    for i, key in places:
        if i < len(args):
            args[i] = None
        else:
            kwargs[key] = None
    return partial(_filled, call.function, tuple(args), kwargs, places)


def _filled(
    function: Function,
    args: Sequence[object],
    kwargs: dict[str, object],
    places: Places,
    *tensors: Tensor,
) -> Tensor:
    args, kwargs = list(args), dict(kwargs)
    for (i, key), tensor in zip(places, tensors, strict=True):
        if i < len(args):
            args[i] = tensor
        else:
            kwargs[key] = tensor
    return function(*args, **kwargs)


def _any(needs: Needs) -> Sequence[bool]:
    return (any(needs),) * len(needs)


def _factors(needs: Needs) -> Sequence[bool]:
    return False, needs[2], needs[1]


X: Places = ((0, "input"),)


def smooth(
    name: str,
    places: Places = X,
    reads: Reads = _any,
    holds: Callable[[Call], bool] = lambda call: True,
    exact: tuple[int, ...] = (),
) -> Answer:
    """Make the answer to a function with a smooth gradient.

    Args:
        name: Name of the op in a policy.
        places: Its tensors: place and name of each argument.
        reads: Which of them the gradients read that are asked for.
        holds: Which calls are answered.
        exact: Which of the tensors are kept exactly.

    Returns:
        What answers it.
    """

    def answered(codecs: Codecs, call: Call) -> Result:
        if not holds(call):
            return NotImplemented
        return from_inputs(name, codecs, call, places, reads, exact)

    return answered


def _is_whole(call: Call) -> bool:
    # Of a small number in codes the sign may be another one: it has no power of 1.5.
    power = call.argument(1, "exponent")
    return isinstance(power, (int, float)) and power >= 2 and power == int(power)


_POW = written(smooth("pow", holds=_is_whole))
_ADDCMUL = smooth("addcmul", ((0, "input"), (1, "tensor1"), (2, "tensor2")), _factors)
_EIGHT = Affine(8, 64, stats=torch.bfloat16)
TIGHT: dict[str, Codec] = dict.fromkeys(("pow", "addcmul", "glu", "var", "cosine"), _EIGHT)
FOLLOWED = (
    *(torch.pow, Tensor.pow, Tensor.__pow__, torch.square, Tensor.square),
    *(torch.addcmul, Tensor.addcmul),
)
CALLS: Calls = {
    **dict.fromkeys((torch.pow, Tensor.pow, Tensor.__pow__), _POW),
    **dict.fromkeys((torch.square, Tensor.square), written(smooth("pow"))),
    **dict.fromkeys((torch.addcmul, Tensor.addcmul), _ADDCMUL),
    **dict.fromkeys((torch.var, Tensor.var, torch.std, Tensor.std), smooth("var")),
    F.glu: smooth("glu"),
    F.cosine_similarity: smooth("cosine", ((0, "x1"), (1, "x2"))),
}


def smooth_case(
    function: Function, *shapes: Shape, reads: Reads = _any, small: int | None = None
) -> Case:
    """Make the example of such a function for the laws.

    Args:
        function: The function, of its tensors alone.
        *shapes: Their shapes.
        reads: Which of them the gradients read that are asked for.
        small: Which of them is small beside the others.

    Returns:
        The example.
    """

    def kept(n: Needs) -> list[Shape]:
        return [s for i, s in enumerate(shapes) if reads(n)[i] and i != small]

    return Case(
        FROM_INPUTS,
        shapes,
        function,
        kept,
        {"function": function, "reads": reads, "shapes": tuple(map(torch.Size, shapes))},
        as_is=lambda n: [] if small is None or not reads(n)[small] else [small],
    )


CASES = {
    "pow": smooth_case(lambda x: x**2, (3, 7, 5)),
    "cube": smooth_case(lambda x: x.pow(3), (3, 7, 5)),
    "square": smooth_case(torch.square, (3, 7, 5)),
    "addcmul": smooth_case(torch.addcmul, (5,), (5,), (3, 7, 5), reads=_factors, small=1),
    "var": smooth_case(lambda x: x.var(-1), (3, 7, 5)),
    "std": smooth_case(lambda x: torch.std(x, dim=1), (3, 7, 5)),
    "glu": smooth_case(lambda x: F.glu(x, 1), (3, 8, 5)),
    "cosine": smooth_case(F.cosine_similarity, (3, 7, 5), (3, 7, 5)),
}

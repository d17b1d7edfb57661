"""Products element by element, where a factor that trains makes the other one worth keeping."""

from __future__ import annotations

from types import NotImplementedType

import torch
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Residue
from .case import Case, Shape
from .formula import written
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved
from .tokens import scaled
from .unary import into_first

SMALL = 8
"""A factor so many times smaller than the other (a scale per channel) is kept as it is."""

PIECE = 5 << 18
"""Numbers of a product that is summed, at once."""

Shapes = tuple[torch.Size, torch.Size]


def _forward(needs: Needs, a: Tensor, b: Tensor, *, shapes: Shapes) -> Forward:
    kept = (b if needs[0] else None, a if needs[1] else None)
    large = [t is not None and not _is_small(t.shape, shapes) for t in kept]
    residues = tuple(
        Residue(t) for t, codes in zip(kept, large, strict=True) if t is not None and codes
    )
    as_is = tuple(None if codes else t for t, codes in zip(kept, large, strict=True))
    return Forward(torch.mul(a, b), residues, as_is)


def _backward(
    needs: Needs, residues: tuple[Tensor, ...], extras: Tensors, dy: Tensor, *, shapes: Shapes
) -> Tensors:
    coded = iter(residues)
    factors = [next(coded) if n and e is None else e for n, e in zip(needs, extras, strict=True)]
    gradients: list[Tensor | None] = [None, None]
    # The smaller first: its product is gone before the larger gradient is there.
    for i in sorted((0, 1), key=lambda i: shapes[i].numel()):
        if needs[i] and (factor := factors[i]) is not None:
            gradients[i] = _summed(dy, factor, shapes[i])
    return tuple(gradients)


def _packed(
    needs: Needs,
    codec: object,
    packed: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    shapes: Shapes,
) -> Tensors | NotImplementedType:
    """Differentiate of a scale and a map: the map is gone before its gradient is there."""
    small = 0 if extras[0] is None else 1  # wants its gradient of the map
    scale = extras[1 - small]
    if not (all(needs) and isinstance(codec, Affine)) or scale is None:
        return NotImplemented
    of_scale = _summed(dy, codec.unpack(packed, shapes[1 - small], dy.dtype), shapes[small])
    of_map = _summed(dy, scale, shapes[1 - small])
    return (of_scale, of_map) if small == 0 else (of_map, of_scale)


def _summed(dy: Tensor, factor: Tensor, shape: torch.Size) -> Tensor:
    """Compute dy times a factor, summed to a shape; of a sum the product is never there whole."""
    lead = dy.ndim - len(shape)
    summed = (i for i, n in enumerate(dy.shape) if n > 1 and (i < lead or shape[i - lead] == 1))
    axis = max(summed, key=dy.shape.__getitem__, default=None)
    if axis is None or dy.numel() <= PIECE:
        return (dy * factor).sum_to_size(shape)
    rows = max(1, dy.shape[axis] * PIECE // dy.numel())
    parts = zip(dy.split(rows, axis), factor.expand_as(dy).split(rows, axis), strict=True)
    first, *rest = ((a * b).sum_to_size(shape) for a, b in parts)
    for part in rest:
        first += part
    return first


MUL = Op(_forward, _backward, packed=_packed)
"""y = a b element by element, da = dy b, db = dy a, summed where they were broadcast.

Residues: b if a wants a gradient, then a if b does. Extras: the same where they are `SMALL`.
Options: `shapes` of a and b.

Saves:
    What the codec keeps of the larger factor's numbers; a small factor is a weight, or small.
"""


def _is_small(shape: torch.Size, shapes: Shapes) -> bool:
    return SMALL * shape.numel() <= max(s.numel() for s in shapes)


def _answer(codecs: Codecs, call: Call) -> Result:
    a, b = call.args if len(call.args) == 2 else (None, None)
    if "mul" not in codecs or not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return NotImplemented
    if (result := scaled(a, b)) is not None:
        return result
    shapes = (a.shape, b.shape)
    large = (
        kept.is_floating_point() and not _is_small(kept.shape, shapes) and wants.requires_grad
        for kept, wants in ((a, b), (b, a))
    )
    return saved(MUL, codecs["mul"], a, b, shapes=shapes) if any(large) else NotImplemented


TIGHT = {"mul": Affine(8, 64, stats=torch.bfloat16)}
FOLLOWED = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
CALLS: Calls = {
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), written(_answer)),
    **dict.fromkeys((Tensor.mul_, Tensor.__imul__), written(into_first("mul", _answer))),
}


def _case(a: Shape, b: Shape, small: int | None = None) -> Case:
    def kept(n: Needs) -> list[Shape]:
        return [s for s, place, need in ((b, 1, n[0]), (a, 0, n[1])) if need and place != small]

    return Case(
        MUL,
        (a, b),
        torch.mul,
        kept,
        {"shapes": (torch.Size(a), torch.Size(b))},
        as_is=lambda n: [] if small is None or not n[1 - small] else [small],
        linear=True,
    )


CASES = {
    "mul": _case((3, 7, 5), (3, 7, 5)),
    "mul_scale": _case((3, 7, 5), (5,), small=1),
    "mul_scale_first": _case((4, 1, 1), (2, 4, 3, 3), small=0),
}

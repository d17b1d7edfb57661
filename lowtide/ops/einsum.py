"""Products of two tensors in Einstein's notation."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Residue
from .case import Case, Shape
from .matmul import product
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors

Axes = tuple[str, str, str]
ANY = "..."


def _forward(needs: Needs, a: Tensor, b: Tensor, *, axes: Axes, **_: object) -> Forward:
    wanted = tuple(Residue(other) for other, need in ((b, needs[0]), (a, needs[1])) if need)
    return Forward(torch.einsum(f"{axes[0]},{axes[1]}->{axes[2]}", a, b), wanted)


def _backward(
    needs: Needs,
    residues: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    axes: Axes,
    shapes: tuple[torch.Size, ...],
) -> Tensors:
    others, gradients = iter(residues), list[Tensor | None]()
    for need, own, other, shape in zip(needs, axes[:2], axes[1::-1], shapes, strict=True):
        if not need:
            gradients.append(None)
            continue
        # Under autocast the product ran in dy's precision.
        factor = next(others).to(dy.dtype)
        found = torch.einsum(f"{axes[2]},{other}->{own}", dy, factor)
        gradients.append(found.sum_to_size(shape))
    return tuple(gradients)


EINSUM = Op(_forward, _backward)
"""y_o = sum of a_i b_j over the axes that are not in o; da_i is such a sum of dy_o b_j, db_j of
dy_o a_i.

Residues: b if a wants a gradient, then a if b does. Options: `axes` of a, b and y; `shapes` of a
and b.

Saves:
    What the codecs keep of the numbers in a and b; a weight as it is.
"""


def axes_of(equation: str) -> Axes | None:
    """Read an equation of two operands.

    Args:
        equation: As torch.einsum takes it.

    Returns:
        Axes of both operands and of the result; None where a gradient is not such a product: an
        axis twice in one operand, or in nothing but one operand.
    """
    given, arrow, result = equation.replace(" ", "").partition("->")
    if given.count(",") != 1:
        return None
    a, b = given.split(",")
    if not arrow:
        once = (x for x, n in Counter(given).items() if n == 1 and x.isalpha())
        result = (ANY if ANY in given else "") + "".join(sorted(once))
    for own, other in ((a, b), (b, a)):
        named = own.removeprefix(ANY)
        if not (named.isalpha() or named == "") or len(set(named)) < len(named):
            return None
        if set(own) - set(other) - set(result):
            return None
    return a, b, result


def _answer(codecs: Codecs, call: Call) -> Result:
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    if call.kwargs or not isinstance(equation, str) or len(operands) != 2:
        return NotImplemented
    axes = axes_of(equation)
    if axes is None:
        return NotImplemented
    a, b = operands
    return product("einsum", codecs, EINSUM, a, b, axes=axes, shapes=(a.shape, b.shape))


TIGHT = {"einsum": Affine(8, 64, stats=torch.bfloat16)}
PRODUCTS = (torch.einsum,)
CALLS: Calls = {torch.einsum: _answer}


def _case(equation: str, a: Shape, b: Shape) -> Case:
    return Case(
        EINSUM,
        (a, b),
        lambda a, b: torch.einsum(equation, a, b),
        lambda n: [s for s, need in ((b, n[0]), (a, n[1])) if need],
        {"axes": axes_of(equation), "shapes": (torch.Size(a), torch.Size(b))},
        linear=True,
    )


CASES = {
    "einsum": _case("bnhd,bmhd->bhnm", (2, 3, 2, 4), (2, 5, 2, 4)),
    "einsum_positions": _case("bhwc,hkc->bhwk", (2, 3, 2, 4), (3, 5, 4)),
    "einsum_implied": _case("ij, jk", (3, 4), (4, 5)),
    "einsum_any": _case("...ij,...jk->...ik", (2, 1, 3, 4), (5, 4, 2)),
    "einsum_shared": _case("...ij,jk->...ik", (2, 3, 4), (4, 2)),
    "einsum_broadcast": _case("bij,bjk->bik", (1, 3, 4), (2, 4, 2)),
}

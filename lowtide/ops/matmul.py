"""Products of two activations, as in attention that is written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from ..codecs.exact import Exact
from .case import Case, Shape
from .linear import autocast
from .saved import (
    SMALL,
    Call,
    Calls,
    Codecs,
    Forward,
    Needs,
    Op,
    Result,
    Tensors,
    codec_kept_by,
    saved,
)

Shapes = tuple[torch.Size, torch.Size]


def _factors(needs: Needs, a: Tensor, b: Tensor) -> tuple[Residue, ...]:
    return tuple(Residue(other) for other, need in ((b, needs[0]), (a, needs[1])) if need)


def _forward(needs: Needs, a: Tensor, b: Tensor, **_: object) -> Forward:
    return Forward(torch.matmul(a, b), _factors(needs, a, b))


def _backward(
    needs: Needs, residues: tuple[Tensor, ...], extras: Tensors, dy: Tensor, *, shapes: Shapes
) -> Tensors:
    if not residues:
        return None, None
    # Under autocast the product ran in dy's precision, whatever a and b came in.
    b, a = (r.to(dy.dtype) for r in (residues[0], residues[-1]))
    da = torch.matmul(dy, b.mT).sum_to_size(shapes[0]) if needs[0] else None
    if not needs[1]:
        return da, None
    if len(shapes[1]) == 2:
        return da, a.flatten(0, -2).mT @ dy.flatten(0, -2)
    return da, torch.matmul(a.mT, dy).sum_to_size(shapes[1])


MATMUL = Op(_forward, _backward)
"""y = a b, da = dy b^T, db = a^T dy, summed over the axes where they were broadcast.

Residues: b if a wants a gradient, then a if b does. Options: `shapes` of a and b.

Saves:
    What the codecs keep of the numbers in a and b; a weight as it is.
"""


def _forward_added(
    needs: Needs,
    c: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    function: Callable[..., Tensor],
    alpha: float,
    beta: float,
    **_: object,
) -> Forward:
    return Forward(function(c, a, b, alpha=alpha, beta=beta), _factors(needs[1:], a, b))


def _backward_added(
    needs: Needs,
    residues: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    alpha: float,
    beta: float,
    shapes: tuple[torch.Size, ...],
    **_: object,
) -> Tensors:
    dc = beta * dy.sum_to_size(shapes[0]) if needs[0] else None
    scaled = dy if alpha == 1 else alpha * dy
    given = (needs[1:], residues, extras, scaled)
    return dc, *_backward(*given, shapes=(shapes[1], shapes[2]))


ADDED_MATMUL = Op(_forward_added, _backward_added)
"""y = beta c + alpha a b: dc = beta dy, da = alpha dy b^T, db = alpha a^T dy.

Residues: as those of `MATMUL`. Options: `function` is torch's; `shapes` of c, a and b.

Saves:
    What the codecs keep of the numbers in a and b; a weight as it is.
"""


def product(
    name: str, codecs: Codecs, op: Op, a: Tensor, b: Tensor, *others: Tensor, **options: object
) -> Result:
    """Answer a product of two tensors.

    Args:
        name: Name of the product in a policy.
        codecs: Codec of each op.
        op: Takes the others, a and b; its residues are b if a wants a gradient, then a if b does.
        a: A factor.
        b: The other one.
        *others: What comes before them.
        **options: Of the op.

    Returns:
        Its result, or `NotImplemented` where nothing but weights is kept, or no codec is known.
    """
    if not all(isinstance(t, Tensor) and t.is_floating_point() for t in (a, b, *others)):
        return NotImplemented
    # What a softmax has kept already costs nothing more, whatever the policy for products.
    of = [codec_kept_by(t) or codecs.get(name) for t in (a, b)]
    kept = [
        _exact_if_few(codec, t, other)
        for codec, t, other in ((of[1], b, a), (of[0], a, b))
        if other.requires_grad
    ]
    if all(isinstance(codec, Exact) for codec in kept) and not (
        isinstance(codecs.get(name), Exact) and any(t.requires_grad for t in (a, b, *others))
    ):
        return NotImplemented
    if any(t.is_leaf for t in (a, b, *others)):  # autocast remembers what it casts those to
        cast = autocast((*others, a, b))
        assert all(t is not None for t in cast)
        return saved(op, tuple(kept), *cast, **options)
    return saved(op, tuple(kept), *others, a, b, **options)


def _exact_if_few(codec: Codec | None, t: Tensor, other: Tensor) -> Codec:
    # A weight is there anyway; what a weight of a low rank makes wide is few.
    few = _is_weight(other) and t.shape[-1] * SMALL <= other.shape[-1]
    if _is_weight(t) or few:
        return Exact()
    return codec or Exact(part=1)  # torch's product keeps a copy of a part as well


def _is_weight(t: Tensor) -> bool:
    return (
        t.is_leaf or not torch.compiler.is_compiling() and t._base is not None and t._base.is_leaf
    )


def _answer(codecs: Codecs, call: Call) -> Result:
    a, b = call.args if len(call.args) == 2 and not call.kwargs else (None, None)
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or min(a.ndim, b.ndim) < 2:
        return NotImplemented
    return product("matmul", codecs, MATMUL, a, b, shapes=(a.shape, b.shape))


def _answer_added(codecs: Codecs, call: Call) -> Result:
    if len(call.args) != 3 or call.kwargs.keys() - {"alpha", "beta"}:
        return NotImplemented
    c, a, b = call.args
    options = {"alpha": call.kwargs.get("alpha", 1), "beta": call.kwargs.get("beta", 1)}
    options |= {"function": call.function, "shapes": (c.shape, a.shape, b.shape)}
    return product("matmul", codecs, ADDED_MATMUL, a, b, c, **options)


_PLAIN = (torch.matmul, torch.bmm, torch.mm)
_METHODS = (Tensor.matmul, Tensor.bmm, Tensor.mm, Tensor.__matmul__)
_ADDED = (torch.baddbmm, torch.addmm, Tensor.baddbmm, Tensor.addmm)
TIGHT = {"matmul": Affine(8, 64, stats=torch.bfloat16)}
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
CALLS: Calls = {
    **dict.fromkeys((*_PLAIN, *_METHODS), _answer),
    **dict.fromkeys(_ADDED, _answer_added),
}


def _case(
    a: Shape, b: Shape, c: Shape | None = None, function: Callable[..., Tensor] = torch.matmul
) -> Case:
    shapes = tuple(torch.Size(s) for s in (c, a, b) if s is not None)
    options: dict[str, object] = {"shapes": shapes}
    if c is not None:
        options |= {"function": function, "alpha": 0.5, "beta": 2.0}

    def kept(n: Needs) -> list[Shape]:
        return [s for s, need in ((b, n[-2]), (a, n[-1])) if need]

    return Case(
        MATMUL if c is None else ADDED_MATMUL,
        shapes,
        function if c is None else lambda *given: function(*given, alpha=0.5, beta=2.0),
        kept,
        options,
        linear=True,
    )


CASES = {
    "matmul": _case((2, 3, 4), (2, 4, 5)),
    "matmul_flat": _case((3, 4), (4, 5)),
    "matmul_shared": _case((2, 3, 4), (4, 5)),
    "matmul_shared_first": _case((3, 4), (2, 4, 5)),
    "matmul_heads": _case((2, 3, 5, 4), (2, 1, 4, 6)),
    "matmul_broadcast": _case((1, 3, 5, 4), (2, 1, 4, 6)),
    "bmm": _case((2, 3, 4), (2, 4, 5), function=torch.bmm),
    "baddbmm": _case((2, 3, 4), (2, 4, 5), (3, 5), torch.baddbmm),
    "addmm": _case((3, 4), (4, 5), (5,), torch.addmm),
}

"""Vectors of length one: F.normalize."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from .case import Case
from .saved import SMALL, Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved


def _forward(needs: Needs, x: Tensor, *, axis: int, eps: float) -> Forward:
    length = torch.linalg.vector_norm(x, 2, axis, keepdim=True)
    # The sign says where eps stands in for the length, which then has no gradient.
    signed = torch.where(length >= eps, length, -eps)
    y = F.normalize(x, 2.0, axis, eps)
    return Forward(y, (Residue(y),), (signed,))


def _backward(
    needs: Needs, residues: tuple[Tensor], extras: Tensors, dy: Tensor, *, axis: int, eps: float
) -> tuple[Tensor]:
    (y,), (signed,) = residues, extras
    assert signed is not None
    along = (dy * y).sum(axis, keepdim=True).mul_(signed > 0)
    return ((dy - y * along) / signed.abs(),)


NORMALIZE = Op(_forward, _backward)
"""y = x / max(|x|, eps) along one axis; dx = (dy - y sum(dy y)) / |x|, or dy / eps. Residue: y.

Extras: |x| of each vector.

Saves:
    What the codec keeps of n numbers, which a product that reads y shares, and one number per
    vector; torch keeps x.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x, axis = call.argument(0, "input"), call.argument(2, "dim", 1)
    plain = call.argument(1, "p", 2.0) == 2 and call.argument(4, "out") is None
    if "normalize" not in codecs or not x.requires_grad or not plain or not isinstance(axis, int):
        return NotImplemented
    if x.ndim == 0 or x.shape[axis] < SMALL:
        return NotImplemented
    eps = call.argument(3, "eps", 1e-12)
    return saved(NORMALIZE, codecs["normalize"], x, axis=axis, eps=eps)


TIGHT: dict[str, Codec] = {"normalize": Affine(8, 64, stats=torch.bfloat16)}
CALLS: Calls = {F.normalize: _answer}
CASES = {
    "normalize": Case(
        NORMALIZE,
        ((3, 2, 17),),
        lambda x: F.normalize(x, dim=-1),
        lambda n: [(3, 2, 17)],
        {"axis": -1, "eps": 1e-12},
        lambda n: 4 * 6,
        made=True,
    ),
    "normalize_short": Case(
        NORMALIZE,
        ((17, 3),),
        lambda x: F.normalize(x, dim=0, eps=4.0),
        lambda n: [(17, 3)],
        {"axis": 0, "eps": 4.0},
        lambda n: 4 * 3,
        made=True,
    ),
}

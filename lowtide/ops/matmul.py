"""Products of two activations, as in attention that is written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Residue
from ..codecs.exact import Exact
from .case import Case
from .saved import (
    Answer,
    Call,
    Codecs,
    Forward,
    Needs,
    Op,
    Tensors,
    codec_kept_by,
    saved,
)


def _forward(needs: Needs, a: Tensor, b: Tensor) -> Forward:
    wanted = [Residue(other) for other, need in ((b, needs[0]), (a, needs[1])) if need]
    return Forward(torch.matmul(a, b), tuple(wanted))


def _backward(needs: Needs, residues: tuple[Tensor, ...], extras: Tensors, dy: Tensor) -> Tensors:
    # Under autocast the product ran in dy's precision, whatever a and b came in.
    b_t, a_t = (r.mT.to(dy.dtype) for r in (residues[0], residues[-1]))
    da = torch.matmul(dy, b_t) if needs[0] else None
    return da, torch.matmul(a_t, dy) if needs[1] else None


MATMUL = Op(_forward, _backward)
"""y = a b, da = dy b^T, db = a^T dy, batched alike. Residues: b if a wants a gradient, then a if b
does.

Saves:
    What the codecs keep of the numbers in a and b.
"""


def _answer(codecs: Codecs, call: Call) -> Any:
    a, b = call.args if len(call.args) == 2 else (None, None)
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.ndim < 3:
        return NotImplemented
    if a.shape[:-2] != b.shape[:-2] or not (a.requires_grad or b.requires_grad):
        return NotImplemented
    plain = codecs.get("matmul")
    # What a softmax has kept already costs nothing more, whatever the policy for products.
    of_a, of_b = codec_kept_by(a) or plain, codec_kept_by(b) or plain
    if of_a is None and of_b is None:
        return NotImplemented
    wanted = [
        c or Exact() for c, need in ((of_b, a.requires_grad), (of_a, b.requires_grad)) if need
    ]
    return saved(MATMUL, tuple(wanted), a, b)


TIGHT = {"matmul": Affine(8, 64, stats=torch.bfloat16)}
CALLS: dict[Callable[..., Any], Answer] = {
    torch.matmul: _answer,
    torch.bmm: _answer,
    Tensor.matmul: _answer,
    Tensor.bmm: _answer,
    Tensor.__matmul__: _answer,
}
CASES = {
    "matmul": Case(
        MATMUL,
        ((2, 3, 4), (2, 4, 5)),
        torch.matmul,
        lambda n: [(2, 4, 5)] * n[0] + [(2, 3, 4)] * n[1],
        linear=True,
    )
}

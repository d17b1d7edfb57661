"""Dropout, with its mask in one bit per number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.base import Residue
from ..codecs.sign import Sign
from .case import Case
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved


def _forward(needs: Needs, x: Tensor, *, p: float) -> Forward:
    # Torch's own noise, 0 or 1 / (1 - p): y is what F.dropout(x) gives from the same seed.
    noise = F.dropout(torch.ones_like(x), p, True)
    return Forward(x * noise, (Residue(noise, lambda rows: (rows != 0).to(rows.dtype)),))


def _backward(
    needs: Needs, residues: tuple[Tensor], extras: Tensors, dy: Tensor, *, p: float
) -> tuple[Tensor]:
    return ((dy * residues[0]).div_(1 - p),)


DROPOUT = Op(_forward, _backward)
"""y = x m / (1 - p), m Bernoulli(1 - p); dx = dy m / (1 - p). Residue: m.

Saves:
    What the codec keeps of n zeros and ones.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x = call.argument(0, "input")
    # torch.dropout has no defaults, F.dropout has.
    p = call.argument(1, "p", 0.5)
    training = call.argument(2, "training", call.argument(2, "train", True))
    if "dropout" not in codecs or not training or not 0 < p < 1 or not x.requires_grad:
        return NotImplemented
    y = saved(DROPOUT, codecs["dropout"], x, p=p)
    return x.copy_(y) if call.argument(3, "inplace", False) else y


TIGHT = {"dropout": Sign()}
FOLLOWED_TO_ATTENTION = (F.dropout,)
CALLS: Calls = {F.dropout: _answer, torch.dropout: _answer}
CASES = {
    "dropout": Case(
        DROPOUT,
        ((3, 7, 5),),
        lambda x: F.dropout(x, 0.3),
        lambda n: [(3, 7, 5)],
        {"p": 0.3},
        made=True,
        linear=True,
    )
}

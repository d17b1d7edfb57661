"""Binary cross entropy of logits: the loss of detectors' classes, focal or not, and of masks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from .case import Case
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

Loss = Callable[[Tensor], Tensor]


def _error(x: Tensor, target: Tensor, *weight: Tensor) -> Tensor:
    error = x.sigmoid() - target
    return error * weight[0] if weight else error


def _forward(
    needs: Needs, x: Tensor, *, call: Loss, beside: tuple[Tensor, ...], **_: object
) -> Forward:
    return Forward(call(x), (Residue(x, _error, beside),))


def _backward(
    needs: Needs, residues: tuple[Tensor], extras: Tensors, dy: Tensor, *, share: float, **_: object
) -> tuple[Tensor]:
    return (dy * share * residues[0],)


BINARY_CROSS_ENTROPY = Op(_forward, _backward)
"""l = -w [t log s(x) + (1 - t) log(1 - s(x))], s the sigmoid; dx = dl w (s(x) - t).

Residue: the error w (s(x) - t). Options: `call` gives l of x, `beside` holds t and maybe w, each of
x's shape, `share` is 1, or 1 / n for a mean.

Saves:
    What the codec keeps of n numbers, where torch keeps x and t.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x, target, weight = (call.argument(i, n) for i, n in enumerate(("input", "target", "weight")))
    reduction, name = call.argument(5, "reduction", "mean"), "binary_cross_entropy"
    old_way = call.argument(3, "size_average") is not None or call.argument(4, "reduce") is not None
    if name not in codecs or old_way or call.argument(6, "pos_weight") is not None:
        return NotImplemented
    others = [t for t in (target, weight) if t is not None]
    if not x.requires_grad or x.shape != target.shape or any(t.requires_grad for t in others):
        return NotImplemented

    def loss(x: Tensor) -> Tensor:
        return call.function(x, target, weight, reduction=reduction)

    beside = tuple(t.expand_as(x) for t in others)
    share = 1 / x.numel() if reduction == "mean" and x.numel() else 1.0
    return saved(BINARY_CROSS_ENTROPY, codecs[name], x, call=loss, beside=beside, share=share)


def _case(reduction: str, *weights: Tensor) -> Case:
    shape, target = (3, 7, 5), torch.arange(105).remainder(3).view(3, 7, 5) / 2

    def loss(x: Tensor) -> Tensor:
        t, weight = target.to(x.dtype), weights[0].to(x.dtype) if weights else None
        return F.binary_cross_entropy_with_logits(x, t, weight, reduction=reduction)

    beside = (target, *(w.expand(shape) for w in weights))
    share = 1 / 105 if reduction == "mean" else 1.0
    options = {"call": loss, "beside": beside, "share": share}
    return Case(BINARY_CROSS_ENTROPY, (shape,), loss, lambda n: [shape], options, made=True)


TIGHT: dict[str, Codec] = {"binary_cross_entropy": Affine(8, 64, stats=torch.bfloat16)}
CALLS: Calls = {F.binary_cross_entropy_with_logits: _answer}
CASES = {
    "binary_cross_entropy": _case("none"),
    "binary_cross_entropy_mean": _case("mean"),
    "binary_cross_entropy_weighted": _case("sum", torch.linspace(0.1, 2, 5)),
}

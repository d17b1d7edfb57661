"""Batch norm: with frozen statistics it is a scale per channel and keeps nothing for its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Residue
from .case import Case, Shape
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

Running = tuple[Tensor | None, Tensor | None]


def _forward(
    needs: Needs,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    running: Running,
    training: bool,
    momentum: float,
    eps: float,
) -> Forward:
    mean, var = running
    if training:
        # What F.batch_norm calls; it gives the statistics too.
        y, mean, rstd, *_ = torch._batch_norm_impl_index(
            x, weight, bias, mean, var, True, momentum, eps, torch.backends.cudnn.enabled
        )
    else:
        assert var is not None
        y, rstd = (
            F.batch_norm(x, mean, var, weight, bias, False, momentum, eps),
            (var + eps).rsqrt(),
        )
    dx, dw, _ = needs
    if not (dw or dx and training):
        return Forward(y, (), (None, rstd, weight if dx else None))

    def again(x: Tensor) -> Tensor:
        assert mean is not None
        by_channel = (1, -1, *[1] * (x.ndim - 2))
        scale = rstd if weight is None else rstd * weight
        y = (x - mean.view(by_channel)) * scale.view(by_channel)
        return y if bias is None else y + bias.view(by_channel)

    return Forward(y, (Residue(x),), (mean, rstd, weight if dx else None), again)


def _backward(
    needs: Needs,
    residues: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    *,
    training: bool,
    eps: float,
    **_: object,
) -> Tensors:
    mean, rstd, weight = extras
    if training and residues:
        x = residues[0].to(dy.dtype)
        return torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, None, None, mean, rstd, True, eps, list(needs)
        )
    assert rstd is not None
    others, channels = (0, *range(2, dy.ndim)), (1, -1, *[1] * (dy.ndim - 2))
    dx = dw = None
    if needs[1]:
        assert mean is not None
        dw = ((residues[0] - mean.view(channels)) * dy).sum(others) * rstd
    if needs[0]:
        scale = rstd if weight is None else weight * rstd
        dx = dy * scale.view(channels).to(dy.dtype)
    return dx, dw, dy.sum(others) if needs[2] else None


BATCH_NORM = Op(_forward, _backward)
"""y = w x^ + b with x^ = (x - mean) rstd, by channel (axis 1).

Of frozen statistics dx = w rstd dy. Of the batch's own
dx = w rstd (dy - mean(dy) - x^ mean(dy x^)). Either way dw = sum(dy x^), db = sum(dy).

Residue: x, if w wants a gradient, or if x does and the statistics are the batch's. Extras: mean,
rstd and w. Options: `running` mean and variance, `training`, `momentum`, `eps`.

Saves:
    What the codec keeps of n numbers, or nothing; and one or two numbers per channel.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x, weight, bias = (call.argument(*of) for of in ((0, "input"), (3, "weight"), (4, "bias")))
    wanted = any(t is not None and t.requires_grad for t in (x, weight, bias))
    if "batch_norm" not in codecs or not wanted:
        return NotImplemented
    return saved(
        BATCH_NORM,
        codecs["batch_norm"],
        x,
        weight,
        bias,
        running=(call.argument(1, "running_mean"), call.argument(2, "running_var")),
        training=call.argument(5, "training", False),
        momentum=call.argument(6, "momentum", 0.1),
        eps=call.argument(7, "eps", 1e-5),
    )


TIGHT = {"batch_norm": Affine(8, 64, stats=torch.bfloat16)}
CALLS: Calls = {F.batch_norm: _answer}


def _case(training: bool, shape: Shape = (3, 4, 6, 5)) -> Case:
    mean, var = torch.tensor([-1.2, 0.3, 0.9, 1.1]), torch.tensor([0.6, 1.3, 0.8, 1.0])

    def plain(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        m, v = mean.to(x.dtype, copy=True), var.to(x.dtype, copy=True)
        return F.batch_norm(x, m, v, w, b, training, 0.2, 1e-3)

    return Case(
        BATCH_NORM,
        (shape, (4,), (4,)),
        plain,
        lambda n: [shape] * (n[1] or training and n[0]),
        {"running": (mean, var), "training": training, "momentum": 0.2, "eps": 1e-3},
        # rstd for everybody but a lone bias; mean where x^ is made; both if nothing is asked of x.
        lambda n: 16 + 16 * (n[1] or training and n[0]),
        lambda n: [1] if n[0] else [],
    )


CASES = {
    "batch_norm": _case(training=True),
    "batch_norm_frozen": _case(training=False),
    "batch_norm_frozen_1d": _case(training=False, shape=(5, 4)),
}

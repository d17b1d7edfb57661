"""Norms over groups of channels and their places: group norm, instance norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Residue
from ..kernels.slices import standardise, wide
from .case import Case, Shape
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

Function = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


def _forward(
    needs: Needs,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    call: Function,
    groups: int,
    eps: float,
) -> Forward:
    y = call(x, weight, bias)
    dx, dw, _ = needs
    if not (dx or dw):
        return Forward(y)
    rows = x.reshape(len(x), groups, -1)
    var, mean = torch.var_mean(wide(rows), -1, correction=0, keepdim=True)
    rstd, shape = (var + eps).rsqrt_(), x.shape

    def again(x_hat: Tensor) -> Tensor:
        y = x_hat.view(shape)
        y = y if weight is None else y * _by_channel(weight, shape)
        return y if bias is None else y + _by_channel(bias, shape)

    residue = Residue(rows, standardise, (mean, rstd))
    return Forward(y, (residue,), (rstd, weight) if dx else (None, None), again)


def _backward(
    needs: Needs, residues: tuple[Tensor, ...], extras: Tensors, dy: Tensor, **_: object
) -> Tensors:
    dy = wide(dy)
    others = (0, *range(2, dy.ndim))
    dx = dw = None
    if residues:
        rstd, weight = extras
        x_hat = wide(residues[0])
        if needs[1]:
            dw = (dy * x_hat.view(dy.shape)).sum(others)
        if rstd is not None:
            g = dy if weight is None else dy * _by_channel(wide(weight), dy.shape)
            g = g.reshape(x_hat.shape)
            inward = torch.addcmul(g.mean(-1, True), x_hat, (g * x_hat).mean(-1, True))
            dx = (g - inward).mul_(rstd).view(dy.shape)
    return dx, dw, dy.sum(others) if needs[2] else None


def _by_channel(weight: Tensor, shape: torch.Size) -> Tensor:
    return weight.view(-1, *[1] * (len(shape) - 2))


GROUP_NORM = Op(_forward, _backward)
"""y = w x^ + b with x^ = (x - mean) rstd over the channels of a group and their places (Wu and He
2018, arXiv:1803.08494); dx = rstd (g - mean(g) - x^ mean(g x^)), g = w dy.

x (B, C, ...), w and b (C,). Residue: x^ (B, groups, ...) if x or w wants a gradient, nothing for b
alone. Extras, for dx: rstd and w. Options: `call` computes y, `groups`, `eps`.

Saves:
    What the codec keeps of n numbers, and 4 bytes per image and group; torch keeps x.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x, groups = call.argument(0, "input"), call.argument(1, "num_groups")
    eps = call.argument(4, "eps", 1e-5)
    function = partial(_group_norm, groups, eps)
    weight, bias = call.argument(2, "weight"), call.argument(3, "bias")
    return _answered(codecs, x, weight, bias, function, groups, eps)


def _answer_instance(codecs: Codecs, call: Call) -> Result:
    x, eps = call.argument(0, "input"), call.argument(7, "eps", 1e-5)
    running = (call.argument(1, "running_mean"), call.argument(2, "running_var"))
    # With statistics of its own, or for a single vector per channel without any, it is another one.
    if not call.argument(5, "use_input_stats", True) or x.ndim < 3:
        return NotImplemented
    function = partial(_instance_norm, running, call.argument(6, "momentum", 0.1), eps)
    weight, bias = call.argument(3, "weight"), call.argument(4, "bias")
    return _answered(codecs, x, weight, bias, function, x.shape[1], eps)


def _group_norm(
    groups: int, eps: float, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    return F.group_norm(x, groups, weight, bias, eps)


def _instance_norm(
    running: tuple[Tensor | None, Tensor | None],
    momentum: float,
    eps: float,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    return F.instance_norm(x, *running, weight, bias, True, momentum, eps)


def _answered(
    codecs: Codecs,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    function: Function,
    groups: int,
    eps: float,
) -> Result:
    wanted = any(t is not None and t.requires_grad for t in (x, weight, bias))
    if "group_norm" not in codecs or not wanted or x.numel() == 0:
        return NotImplemented
    options = {"call": function, "groups": groups, "eps": eps}
    return saved(GROUP_NORM, codecs["group_norm"], x, weight, bias, **options)


NORMS = ("group_norm",)
TIGHT = {"group_norm": Affine(4, 128, stats=torch.bfloat16)}
CALLS: Calls = {
    **dict.fromkeys((F.group_norm, torch.group_norm), _answer),
    F.instance_norm: _answer_instance,
}


def _case(function: Function, groups: int, shape: Shape, scale_shift: bool = True) -> Case:
    channels = (shape[1],) if scale_shift else None
    return Case(
        GROUP_NORM,
        (shape, channels, channels),
        function,
        lambda n: [(shape[0], groups, shape[1] // groups * 12)] if n[0] or n[1] else [],
        {"call": function, "groups": groups, "eps": 1e-3},
        lambda n: 4 * shape[0] * groups * n[0],
        lambda n: [1] if n[0] and scale_shift else [],
        made=True,
    )


CASES = {
    "group_norm": _case(partial(_group_norm, 3, 1e-3), 3, (2, 6, 4, 3)),
    "group_norm_one": _case(partial(_group_norm, 1, 1e-3), 1, (2, 5, 12)),
    "group_norm_plain": _case(partial(_group_norm, 2, 1e-3), 2, (2, 4, 3, 2, 2), scale_shift=False),
    "instance_norm": _case(partial(_instance_norm, (None, None), 0.1, 1e-3), 3, (2, 3, 4, 3)),
}

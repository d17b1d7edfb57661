"""RMS norm over the last axes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Residue
from ..kernels.slices import standardise, wide
from .case import Case, Shape
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved


def _forward(needs: Needs, x: Tensor, weight: Tensor | None, *, eps: float | None) -> Forward:
    y = F.rms_norm(x, x.shape[-1:], weight, eps)
    eps = torch.finfo(wide(x).dtype).eps if eps is None else eps  # torch's, whatever x is in
    rstd = (wide(x).square().mean(-1, keepdim=True) + eps).rsqrt_()

    def again(x_hat: Tensor) -> Tensor:
        return x_hat if weight is None else x_hat * weight

    residue = Residue(x, standardise, (torch.zeros_like(rstd), rstd))
    return Forward(y, (residue,), (rstd, weight) if needs[0] else (None, None), again)


def _backward(
    needs: Needs, residues: tuple[Tensor, ...], extras: Tensors, dy: Tensor, **_: object
) -> Tensors:
    rstd, weight = extras
    dy, x_hat, dx = wide(dy), wide(residues[0]), None
    if rstd is not None:
        g = dy if weight is None else dy * weight
        dx = (g - x_hat * (g * x_hat).mean(-1, keepdim=True)).mul_(rstd)
    return dx, (dy * x_hat).flatten(0, -2).sum(0) if needs[1] else None


RMS_NORM = Op(_forward, _backward)
"""y = w x^ with x^ = x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019, arXiv:1910.07467);
dx = (g - x^ mean(g x^)) / sqrt(mean(x^2) + eps), g = w dy; dw = sum(dy x^).

Residue: x^ (..., C). Extras, for dx: the factor of each row, and w.

Saves:
    What the codec keeps of n numbers, and 4 bytes per row; torch keeps x.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x, shape = call.argument(0, "input"), call.argument(1, "normalized_shape")
    weight, eps = call.argument(2, "weight"), call.argument(3, "eps")
    wanted = x.requires_grad or weight is not None and weight.requires_grad
    if "rms_norm" not in codecs or len(shape) != 1 or x.ndim < 2 or not wanted:
        return NotImplemented
    return saved(RMS_NORM, codecs["rms_norm"], x, weight, eps=eps)


NORMS = ("rms_norm",)
TIGHT = {"rms_norm": Affine(4, 128, stats=torch.bfloat16)}
CALLS: Calls = {F.rms_norm: _answer, torch.rms_norm: _answer}


def _case(weight: Shape | None) -> Case:
    return Case(
        RMS_NORM,
        ((3, 7, 5), weight),
        lambda x, w: F.rms_norm(x, (5,), w, 1e-3),
        lambda n: [(3, 7, 5)],
        {"eps": 1e-3},
        lambda n: 4 * 21 * n[0],
        lambda n: [1] if n[0] and weight else [],
        made=True,
    )


CASES = {"rms_norm": _case((5,)), "rms_norm_plain": _case(None)}

"""Layer norm over the last axis; timm's channel-first LayerNorm2d calls it on a permuted view."""

from __future__ import annotations

from types import NotImplementedType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from ..kernels.layer_norm import layer_norm_backward
from ..kernels.slices import standardise, wide
from .case import Case
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

FUSED = {"cuda"}
"""Devices with a kernel that computes the gradients from codes; others unpack them first."""


def _forward(
    needs: Needs, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> Forward:
    shape = x.shape[-1:]
    whole = all(t is None or t.dtype == torch.float32 for t in (x, weight, bias))
    if torch.is_autocast_enabled(x.device.type) and not whole:
        # Autocast knows layer_norm, not its native form; it never makes either narrower.
        y = F.layer_norm(x, shape, weight, bias, eps)
        _, mean, rstd = torch.native_layer_norm(wide(x), shape, None, None, eps)
    else:
        y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
    if mean.dtype.itemsize < 4:
        _, mean, rstd = torch.native_layer_norm(wide(x), shape, None, None, eps)
    dx, dw, _ = needs
    residue = Residue(x, standardise, (mean, rstd))
    kept = (rstd, weight) if dx else (None, None)

    def again(x_hat: Tensor) -> Tensor:
        if weight is not None and bias is not None:
            return torch.addcmul(bias, x_hat, weight)
        scaled = x_hat if weight is None else x_hat * weight
        return scaled if bias is None else scaled + bias

    return Forward(y, (residue,) if dx or dw else (), kept, again)


def _backward(
    needs: Needs, residues: tuple[Tensor, ...], extras: Tensors, dy: Tensor, **_: object
) -> Tensors:
    rstd, weight = extras
    dy = wide(dy)
    x_hat = wide(residues[0]) if residues else dy
    if rstd is not None and weight is not None:
        whole = _all(needs, dy, x_hat, weight.to(dy.dtype))
        return whole[0].mul_(rstd), *whole[1:]
    dx = None if rstd is None else _all((True, False, False), dy, x_hat, None)[0].mul_(rstd)
    dw = _over_rows(dy * x_hat) if needs[1] else None
    return dx, dw, _over_rows(dy) if needs[2] else None


def _over_rows(x: Tensor) -> Tensor:
    # sum(()) would sum a single row over its columns.
    return x.sum(tuple(range(x.ndim - 1))) if x.ndim > 1 else x


def _all(
    needs: Needs, dy: Tensor, x_hat: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    rows = (*dy.shape[:-1], 1)
    # Of the normalised input the mean is 0 and the deviation 1; the true one is multiplied in last.
    # Of the bias only the shape is looked at.
    mean, rstd = dy.new_zeros(rows), dy.new_ones(rows)
    return torch.ops.aten.native_layer_norm_backward(
        dy, x_hat, dy.shape[-1:], mean, rstd, weight, weight, list(needs)
    )


def _packed(
    needs: Needs,
    codec: Codec,
    packed: tuple[Tensor, ...],
    extras: Tensors,
    dy: Tensor,
    **_: object,
) -> Tensors | NotImplementedType:
    rstd, weight = extras
    if dy.device.type not in FUSED or rstd is None:
        return NotImplemented
    if not isinstance(codec, Affine) or not isinstance(codec.group, int):
        return NotImplemented
    given = (rstd, weight, codec.bits, codec.group, needs[1] or needs[2])
    dx, dw, db = layer_norm_backward(dy, *packed, *given)
    return dx, dw if needs[1] else None, db if needs[2] else None


LAYER_NORM = Op(_forward, _backward, packed=_packed)
"""y = w x^ + b with x^ = (x - mean) rstd; dx = rstd (g - mean(g) - x^ mean(g x^)), g = w dy.

Residue: x^ if x or w wants a gradient, nothing for b alone. Extras, for dx: rstd and w.

Saves:
    What the codec keeps of n numbers, and 4 bytes per row.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    x, shape = call.argument(0, "input"), call.argument(1, "normalized_shape")
    weight, bias = call.argument(2, "weight"), call.argument(3, "bias")
    wanted = any(t is not None and t.requires_grad for t in (x, weight, bias))
    if "layer_norm" not in codecs or len(shape) != 1 or not wanted:
        return NotImplemented
    eps = call.argument(4, "eps", 1e-5)
    return saved(LAYER_NORM, codecs["layer_norm"], x, weight, bias, eps=eps)


NORMS = ("layer_norm",)
TIGHT = {"layer_norm": Affine(4, 128, stats=torch.bfloat16)}
CALLS: Calls = {F.layer_norm: _answer, torch.layer_norm: _answer}
CASES = {
    "layer_norm": Case(
        LAYER_NORM,
        ((3, 7, 5), (5,), (5,)),
        lambda x, w, b: F.layer_norm(x, (5,), w, b, 1e-6),
        lambda n: [(3, 7, 5)] if n[0] or n[1] else [],
        {"eps": 1e-6},
        lambda n: 4 * 21 * n[0],
        lambda n: [1] if n[0] else [],
        made=True,
    ),
    "layer_norm_plain": Case(
        LAYER_NORM,
        ((3, 7, 5), None, None),
        lambda x, w, b: F.layer_norm(x, (5,), w, b, 1e-6),
        lambda n: [(3, 7, 5)],
        {"eps": 1e-6},
        lambda n: 4 * 21,
        made=True,
    ),
}

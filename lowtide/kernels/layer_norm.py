"""The backward of a layer norm from the codes of its normalised input: an op of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .affine import affine_unpack_plain
from .slices import wide

Gradients = tuple[Tensor, Tensor, Tensor]


def layer_norm_backward_plain(
    dy: Tensor,
    low: Tensor,
    step: Tensor,
    codes: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bits: int,
    group: int,
    trained: bool,
) -> Gradients:
    """Define `layer_norm_backward` in plain PyTorch.

        dx = rstd (g - mean(g) - x^ mean(g x^)),  g = w dy;  dw = sum dy x^,  db = sum dy

    Args:
        dy: Gradient of the result (..., C).
        low: Minima, as `affine_pack` gives them for x^ (groups,).
        step: Steps (groups,).
        codes: Codes (bytes,).
        rstd: One over the deviation of each row (..., 1).
        weight: w (C,), or none for w = 1.
        bits: Width of a code.
        group: Numbers in a group.
        trained: Whether dw and db are wanted.

    Returns:
        dx in dy's dtype; dw and db (C,) in float32 at least; empty if they are not wanted.
    """
    dtype, dy = dy.dtype, wide(dy)
    x_hat = affine_unpack_plain(low, step, codes, list(dy.shape), bits, group, dy.dtype)
    g = dy if weight is None else dy * weight
    dx = g - g.mean(-1, keepdim=True) - x_hat * (g * x_hat).mean(-1, keepdim=True)
    sums = [rows.reshape(-1, dy.shape[-1]).sum(0) for rows in (dy * x_hat, dy) if trained]
    dw, db = sums or (dy.new_empty(0), dy.new_empty(0))
    return (dx * rstd).to(dtype), dw, db


layer_norm_backward = torch.library.custom_op(
    "lowtide::layer_norm_backward",
    layer_norm_backward_plain,
    mutates_args=(),
    schema="(Tensor dy, Tensor low, Tensor step, Tensor codes, Tensor rstd, Tensor? weight,"
    " int bits, int group, bool trained) -> (Tensor, Tensor, Tensor)",
)
"""Computes a layer norm's gradients from codes; `layer_norm_backward_plain` defines it."""


@layer_norm_backward.register_fake
def _(
    dy: Tensor,
    low: Tensor,
    step: Tensor,
    codes: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bits: int,
    group: int,
    trained: bool,
) -> Gradients:
    compute = torch.float64 if dy.dtype == torch.float64 else torch.float32
    dw, db = (dy.new_empty(dy.shape[-1] if trained else 0, dtype=compute) for _ in range(2))
    return dy.new_empty(dy.shape), dw, db

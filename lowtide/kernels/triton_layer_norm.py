"""The backward of a layer norm on a GPU, in Triton: reads codes, never writes x^ to memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layer_norm import Gradients, layer_norm_backward, layer_norm_backward_plain
from .triton import DTYPES, EXACT, LARGEST, _load_codes, _rounded

PROGRAMS = 1024
"""Programs at most, each with rows of its own and one partial sum of dw and db."""


@triton.jit
def _load_affine(lows, steps, packed, at, n, here, BITS: tl.constexpr, GROUP: tl.constexpr):
    low = tl.load(lows + at // GROUP, mask=here, other=0.0).to(tl.float32)
    step = tl.load(steps + at // GROUP, mask=here, other=0.0).to(tl.float32)
    # Where nothing is, the minimum and the step are 0, so x^ is.
    return _load_codes(packed, at, n, BITS).to(tl.float32) * step + low


@triton.jit
def _through_norm(g, x_hat, ROW: tl.constexpr):
    return g - tl.sum(g) / ROW - x_hat * (tl.sum(g * x_hat) / ROW)


# `each` rows of ROW numbers, one after the other; SIZE is the next power of two. `weight` and
# `sums` may be None.
@triton.jit(do_not_specialize=["each", "rows"])
def _layer_norm_backward(
    dy,
    lows,
    steps,
    packed,
    rstd,
    weight,
    dx,
    sums,
    each,
    rows,
    ROW: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
):
    column = tl.arange(0, SIZE)
    inside = column < ROW
    program = tl.program_id(0).to(tl.int64)
    sum_w = tl.zeros((SIZE,), tl.float32)
    sum_b = tl.zeros((SIZE,), tl.float32)
    if weight is not None:
        w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    n = rows.to(tl.int64) * ROW
    for i in range(each):
        row = program * each + i
        at = row * ROW + column
        here = inside & (at < n)
        g = tl.load(dy + at, mask=here, other=0.0).to(tl.float32)
        x_hat = _load_affine(lows, steps, packed, at, n, here, BITS, GROUP)
        if sums is not None:
            sum_w += g * x_hat
            sum_b += g
        if weight is not None:
            g *= w
        d = _through_norm(g, x_hat, ROW) * tl.load(rstd + tl.minimum(row, rows - 1))
        tl.store(dx + at, _rounded(d, dx.dtype.element_ty), mask=here)
    if sums is not None:
        tl.store(sums + program * ROW + column, sum_w, mask=inside)
        tl.store(sums + (tl.num_programs(0) + program) * ROW + column, sum_b, mask=inside)


def layer_norm_backward_triton(
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
    """Run `layer_norm_backward` on a GPU; rows above `LARGEST` run in plain PyTorch."""
    width, n = dy.shape[-1], dy.numel()
    if n == 0 or width > LARGEST or dy.dtype not in DTYPES:
        given = (dy, low, step, codes, rstd, weight, bits, group, trained)
        return layer_norm_backward_plain(*given)
    rows = n // width
    each = triton.cdiv(rows, PROGRAMS)
    programs = triton.cdiv(rows, each)
    dy, rstd = dy.contiguous(), rstd.contiguous()
    dx = dy.new_empty(dy.shape)
    sums = dy.new_empty(2, programs, width if trained else 0, dtype=torch.float32)
    scale = None if weight is None else weight.contiguous()
    tensors = (dy, low, step, codes, rstd, scale, dx, sums if trained else None)
    size = triton.next_power_of_2(width)
    _layer_norm_backward[(programs,)](
        *tensors, each, rows, ROW=width, BITS=bits, GROUP=group, SIZE=size,
        num_warps=min(max(size // 256, 1), 16), **EXACT,
    )  # fmt: skip
    return dx, sums[0].sum(0), sums[1].sum(0)


layer_norm_backward.register_kernel("cuda")(layer_norm_backward_triton)

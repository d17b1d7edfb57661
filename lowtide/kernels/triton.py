"""The GPU kernels, in Triton: bit for bit what affine.py and threshold_codes.py define."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .affine import affine_pack, affine_pack_plain, affine_unpack, affine_unpack_plain
from .bits import packed_bytes
from .threshold_codes import (
    floats_below,
    threshold_pack,
    threshold_pack_plain,
    threshold_scale,
    threshold_scale_plain,
    threshold_unpack,
    threshold_unpack_plain,
)

NUMBERS = 1024
"""Numbers a program packs or unpacks."""
LARGEST = 8192
"""Largest group a program holds."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXACT: dict[str, bool] = {"enable_fp_fusion": False}
"""Products and sums round one after the other, as PyTorch's do."""


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    # By hand for bfloat16: to the nearest, ties to even, under the interpreter too.
    if dtype == tl.bfloat16:
        raw = x.to(tl.int32, bitcast=True)
        raw = (raw + 0x7FFF + ((raw >> 16) & 1)) & -65536
        x = tl.where(x != x, x, raw.to(tl.float32, bitcast=True))
    return x.to(dtype)


@triton.jit
def _store_field(codes, out, first, n, BITS: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    PER: tl.constexpr = 8 // WIDTH
    # Wider fields hold the lower bits.
    LOWER: tl.constexpr = BITS & (15 ^ (2 * WIDTH - 1))
    field = tl.reshape((codes >> LOWER) & ((1 << WIDTH) - 1), (SIZE // PER, PER))
    byte = tl.sum(field << (tl.arange(0, PER) * WIDTH)[None, :], axis=1)
    at = first // PER + tl.arange(0, SIZE // PER)
    tl.store(out + at, byte.to(tl.uint8), mask=at < (n.to(tl.int64) * WIDTH + 7) // 8)


@triton.jit
def _store_codes(codes, out, first, n, BITS: tl.constexpr, SIZE: tl.constexpr):
    # SIZE codes from number `first` on, a multiple of 8; each field in bytes of its own.
    for i in tl.static_range(4):
        if BITS & (8 >> i):
            _store_field(codes, out, first, n, BITS, 8 >> i, SIZE)
            out += (n.to(tl.int64) * (8 >> i) + 7) // 8


@triton.jit
def _load_field(packed, at, n, BITS: tl.constexpr, WIDTH: tl.constexpr):
    PER: tl.constexpr = 8 // WIDTH
    LOWER: tl.constexpr = BITS & (15 ^ (2 * WIDTH - 1))
    byte = tl.load(packed + at // PER, mask=at < n, other=0).to(tl.int32)
    return ((byte >> ((at % PER) * WIDTH).to(tl.int32)) & ((1 << WIDTH) - 1)) << LOWER


@triton.jit
def _load_codes(packed, at, n, BITS: tl.constexpr):
    codes = (at * 0).to(tl.int32)
    for i in tl.static_range(4):
        if BITS & (8 >> i):
            codes |= _load_field(packed, at, n, BITS, 8 >> i)
            packed += (n.to(tl.int64) * (8 >> i) + 7) // 8
    return codes


@triton.jit
def _low_and_step(groups, inside, top, SHORT: tl.constexpr):
    low = tl.min(tl.where(inside, groups, float("inf")), axis=1)
    high = tl.max(tl.where(inside, groups, float("-inf")), axis=1)
    bad = tl.max((groups != groups).to(tl.int32), axis=1) > 0
    low = tl.where(bad, float("nan"), low)
    high = tl.where(bad, float("nan"), high)
    if SHORT:
        low = _rounded(low - 0.0078125 * tl.abs(low), tl.bfloat16).to(tl.float32)
    step = tl.div_rn(high, low * 0 + top) - tl.div_rn(low, low * 0 + top)
    if SHORT:
        step = _rounded(step * 1.0078125, tl.bfloat16).to(tl.float32)
    return low, step


@triton.jit(do_not_specialize=["row", "n"])
def _affine_pack(
    x,
    mean,
    rstd,
    low_out,
    step_out,
    out,
    row,
    n,
    ROWS: tl.constexpr,
    SHORT: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * SIZE
    at = first + tl.arange(0, SIZE)
    here = at < n
    v = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    if ROWS:
        shift = tl.load(mean + at // row, mask=here, other=0.0)
        v = (v - shift) * tl.load(rstd + at // row, mask=here, other=1.0)
    groups = tl.reshape(v, (SIZE // GROUP, GROUP))
    inside = tl.reshape(here, (SIZE // GROUP, GROUP))
    top = (1 << BITS) - 1.0
    low, step = _low_and_step(groups, inside, top, SHORT)
    scale = tl.where(step < 1.1754943508222875e-38, 0.0, tl.div_rn(low * 0 + 1.0, step))
    q = (groups - low[:, None]) * scale[:, None]
    q = tl.where(q > 0, q, 0.0)
    q = tl.where(q < top, q, top)
    # To the nearest, ties to even: a float32 has no fractions beyond 2^23.
    q = (q + 8388608.0) - 8388608.0
    codes = tl.where(here, tl.reshape(q, (SIZE,)).to(tl.int32), 0)
    g = first // GROUP + tl.arange(0, SIZE // GROUP)
    some = g * GROUP < n
    tl.store(low_out + g, low.to(low_out.dtype.element_ty), mask=some)
    tl.store(step_out + g, step.to(step_out.dtype.element_ty), mask=some)
    _store_codes(codes, out, first, n, BITS, SIZE)


@triton.jit(do_not_specialize=["group", "n"])
def _affine_unpack(lows, steps, packed, out, group, n, BITS: tl.constexpr, SIZE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    here = at < n
    codes = _load_codes(packed, at, n, BITS).to(tl.float32)
    low = tl.load(lows + at // group, mask=here, other=0.0).to(tl.float32)
    step = tl.load(steps + at // group, mask=here, other=0.0).to(tl.float32)
    tl.store(out + at, _rounded(codes * step + low, out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["count", "n"])
def _threshold_pack(x, edges, codes, out, count, n, BITS: tl.constexpr, SIZE: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * SIZE
    at = first + tl.arange(0, SIZE)
    v = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    below = tl.zeros((SIZE,), tl.int32)
    for j in range(count):
        below += (v > tl.load(edges + j)).to(tl.int32)
    code = tl.load(codes + below).to(tl.int32)
    _store_codes(tl.where(at < n, code, 0), out, first, n, BITS, SIZE)


@triton.jit(do_not_specialize=["n"])
def _threshold_unpack(
    packed, levels, dy, out, n, SCALE: tl.constexpr, BITS: tl.constexpr, SIZE: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    here = at < n
    value = tl.load(levels + _load_codes(packed, at, n, BITS), mask=here, other=0.0)
    # Rounded as the table of the plain definition is.
    value = _rounded(value, out.dtype.element_ty).to(tl.float32)
    if SCALE:
        value *= tl.load(dy + at, mask=here, other=0.0).to(tl.float32)
    tl.store(out + at, _rounded(value, out.dtype.element_ty), mask=here)


@functools.cache
def _table(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def affine_pack_triton(
    x: Tensor, mean: Tensor | None, rstd: Tensor | None, bits: int, group: int, stats: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `affine_pack` on a GPU; groups that are no power of two run in plain PyTorch."""
    fits = 8 <= group <= LARGEST and group & (group - 1) == 0 and stats != torch.float16
    if x.dtype not in DTYPES or not fits:
        return affine_pack_plain(x, mean, rstd, bits, group, stats)
    x, n, size = x.contiguous(), x.numel(), max(NUMBERS, group)
    low, step = (x.new_empty(-(-n // group), dtype=stats) for _ in range(2))
    codes = x.new_empty(packed_bytes(n, bits), dtype=torch.uint8)
    rows = (x, x) if mean is None or rstd is None else (mean.contiguous(), rstd.contiguous())
    row = x.shape[-1] if x.ndim else 1
    fixed = {"ROWS": mean is not None, "SHORT": stats == torch.bfloat16, "GROUP": group}
    if n:
        grid = (triton.cdiv(n, size),)
        tensors = (x, *rows, low, step, codes)
        _affine_pack[grid](*tensors, row, n, BITS=bits, SIZE=size, **fixed, **EXACT)
    return low, step, codes


def affine_unpack_triton(
    low: Tensor,
    step: Tensor,
    codes: Tensor,
    shape: list[int],
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    """Run `affine_unpack` on a GPU."""
    if dtype not in DTYPES:
        return affine_unpack_plain(low, step, codes, shape, bits, group, dtype)
    x = low.new_empty(shape, dtype=dtype)
    if n := x.numel():
        grid = (triton.cdiv(n, NUMBERS),)
        _affine_unpack[grid](low, step, codes, x, group, n, BITS=bits, SIZE=NUMBERS, **EXACT)
    return x


def threshold_pack_triton(
    x: Tensor, edges: Sequence[float], codes: Sequence[int], bits: int
) -> Tensor:
    """Run `threshold_pack` on a GPU."""
    if x.dtype not in DTYPES:
        return threshold_pack_plain(x, edges, codes, bits)
    x, n = x.contiguous(), x.numel()
    out = x.new_empty(packed_bytes(n, bits), dtype=torch.uint8)
    if n:
        near = _table(floats_below(tuple(edges)), torch.float32, x.device)
        rising = _table(tuple(codes), torch.int32, x.device)
        grid = (triton.cdiv(n, NUMBERS),)
        _threshold_pack[grid](x, near, rising, out, len(edges), n, BITS=bits, SIZE=NUMBERS)
    return out


def threshold_unpack_triton(
    codes: Tensor, levels: Sequence[float], shape: list[int], bits: int, dtype: torch.dtype
) -> Tensor:
    """Run `threshold_unpack` on a GPU."""
    if dtype not in DTYPES:
        return threshold_unpack_plain(codes, levels, shape, bits, dtype)
    return _values(codes, levels, bits, None, codes.new_empty(shape, dtype=dtype))


def threshold_scale_triton(dy: Tensor, codes: Tensor, levels: Sequence[float], bits: int) -> Tensor:
    """Run `threshold_scale` on a GPU."""
    if dy.dtype not in DTYPES:
        return threshold_scale_plain(dy, codes, levels, bits)
    dx = dy.new_empty(dy.shape)
    dy = dy if dy.is_contiguous() else dx.copy_(dy)
    return _values(codes, levels, bits, dy, dx)


def _values(
    codes: Tensor, levels: Sequence[float], bits: int, dy: Tensor | None, out: Tensor
) -> Tensor:
    if n := out.numel():
        every = (*levels, *(0.0,) * (2**bits - len(levels)))
        table = _table(every, torch.float32, codes.device)
        fixed = {"SCALE": dy is not None, "BITS": bits, "SIZE": NUMBERS}
        grid = (triton.cdiv(n, NUMBERS),)
        _threshold_unpack[grid](codes, table, out if dy is None else dy, out, n, **fixed)
    return out


affine_pack.register_kernel("cuda")(affine_pack_triton)
affine_unpack.register_kernel("cuda")(affine_unpack_triton)
threshold_pack.register_kernel("cuda")(threshold_pack_triton)
threshold_unpack.register_kernel("cuda")(threshold_unpack_triton)
threshold_scale.register_kernel("cuda")(threshold_scale_triton)

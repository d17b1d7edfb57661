"""Groups of numbers as small codes, a minimum and a step: the ops of the affine codec."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from . import native
from .bits import join, pack_bits, packed_bytes, split, unpack_bits
from .slices import slices, standardise, wide

Rounding = Literal["nearest", "floor", "stochastic"]
Packed = tuple[Tensor, Tensor, Tensor]


def multiple_of_8(size: int) -> int:
    """Find a number of whole groups and whole bytes.

    Args:
        size: Numbers in a group.

    Returns:
        The least multiple of it by a power of two that 8 divides.
    """
    while size % 8:
        size *= 2
    return size


def in_groups(flat: Tensor, size: int) -> Tensor:
    """Lay numbers out in groups; the last is filled up with its last number.

    Args:
        flat: (n,).
        size: Numbers in a group.

    Returns:
        (groups, size).
    """
    missing = -len(flat) % size
    if missing:
        flat = torch.cat((flat, flat[-1:].expand(missing)))
    return flat.view(-1, size)


def statistics(low: Tensor, high: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute what is kept of a range, rounded outwards.

    Args:
        low: Minima.
        high: Maxima.
        bits: Width of a code.
        dtype: Dtype that is kept.

    Returns:
        Minimum and step = (high - low) / (2^bits - 1); no number falls out of their range.
    """
    top = 2**bits - 1
    if dtype.itemsize >= low.dtype.itemsize:
        return low, high / top - low / top
    slack = torch.finfo(dtype).eps
    low = (low - slack * low.abs()).to(dtype)
    kept = low.to(high.dtype)
    return low, ((high / top - kept / top) * (1 + slack)).to(dtype)


def quantise(
    groups: Tensor,
    count: int,
    low: Tensor,
    high: Tensor,
    step: Tensor,
    bits: int,
    rounding: Rounding,
) -> Tensor:
    """Compute the codes.

    Rounding down, a maximum gets the last code, where steps that were rounded outwards would leave
    it just short of that and a whole step away.

    Args:
        groups: Numbers (groups, size).
        count: How many of them there are, without those that fill up the last group.
        low: Minima (groups, 1) as they are kept.
        high: Maxima (groups, 1).
        step: Steps (groups, 1) as they are kept.
        bits: Width of a code.
        rounding: To the nearest code, down, or at random.

    Returns:
        round((x - low) / step) as bytes (count,).
    """
    step = step.to(groups.dtype)
    # A constant group has no step; its one value is the minimum, code 0.
    scale = torch.where(step < torch.finfo(step.dtype).tiny, 0, 1 / step)
    x = (groups - low.to(groups.dtype)).mul_(scale)
    if rounding == "nearest":
        x = x.round_()
    elif rounding == "stochastic":
        x = x.add_(torch.rand_like(x)).floor_()
    else:
        x = torch.where(groups >= high, 2**bits - 1, x.floor_())
    return x.clamp_(0, 2**bits - 1).flatten()[:count].to(torch.uint8)


def pack_chunks(
    chunks: Iterable[Tensor],
    like: Tensor,
    bits: int,
    group: int,
    stats: torch.dtype,
    rounding: Rounding = "nearest",
    ends: tuple[Tensor, Tensor] | None = None,
) -> Packed:
    """Quantise numbers that come in chunks.

    Args:
        chunks: Flat; each but the last holds whole groups and whole bytes of codes.
        like: On their device.
        bits: Width of a code.
        group: Consecutive numbers that share a minimum and a step.
        stats: Dtype of these.
        rounding: How codes are rounded.
        ends: Minimum and maximum (1, 1) of all numbers, which then are one group.

    Returns:
        Minima (groups,), steps (groups,), codes (bytes,).
    """
    lows, steps, codes = [], [], []
    for chunk in chunks:
        groups = in_groups(chunk, group) if ends is None else chunk.unsqueeze(0)
        # aminmax along an axis does the same, ten times slower on a CPU.
        low, high = ends or (groups.amin(1, keepdim=True), groups.amax(1, keepdim=True))
        low, step = statistics(low, high, bits, stats)
        code = quantise(groups, len(chunk), low, high, step, bits, rounding)
        codes.append(pack_bits(code, bits))
        lows.append(low.flatten())
        steps.append(step.flatten())
    if not codes:
        return like.new_empty(0, dtype=stats), like.new_empty(0, dtype=stats), join([], like)
    if ends:
        lows, steps = lows[:1], steps[:1]
    return torch.cat(lows), torch.cat(steps), join(codes, like)


def affine_pack_plain(
    x: Tensor, mean: Tensor | None, rstd: Tensor | None, bits: int, group: int, stats: torch.dtype
) -> Packed:
    """Define `affine_pack` in plain PyTorch.

    Args:
        x: Numbers (..., C), any layout.
        mean: Subtracted from each row first, (..., 1), with `rstd`.
        rstd: Then multiplied with.
        bits: Width of a code.
        group: Consecutive numbers that share a minimum and a step.
        stats: Dtype of these.

    Returns:
        Minima (groups,), steps (groups,), codes (bytes,).
    """
    return pack_chunks(_chunks(x, mean, rstd, group), x, bits, group, stats)


def affine_unpack_plain(
    low: Tensor,
    step: Tensor,
    codes: Tensor,
    shape: list[int],
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    """Define `affine_unpack` in plain PyTorch.

    Args:
        low: Minima (groups,).
        step: Steps (groups,).
        codes: Codes (bytes,).
        shape: Shape of the numbers.
        bits: Width of a code.
        group: Numbers in a group.
        dtype: Dtype of the numbers.

    Returns:
        code step + low.
    """
    count = torch.Size(shape).numel()
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    code = unpack_bits(split(codes, bits, count), bits, count)
    x = in_groups(code.to(compute), group)
    x = x.mul_(step.to(compute).unsqueeze(1)).add_(low.to(compute).unsqueeze(1))
    # A copy: the result has no bytes but its own.
    return x.flatten()[:count].view(shape).to(dtype, copy=True)


def _chunks(x: Tensor, mean: Tensor | None, rstd: Tensor | None, group: int) -> Iterator[Tensor]:
    unit = multiple_of_8(group)
    if mean is None or rstd is None:
        return slices((x,), unit, wide)
    return slices((x, mean, rstd), unit, standardise)


@torch.library.custom_op(
    "lowtide::affine_pack",
    mutates_args=(),
    schema="(Tensor x, Tensor? mean, Tensor? rstd, int bits, int group, ScalarType stats)"
    " -> (Tensor, Tensor, Tensor)",
)
def affine_pack(
    x: Tensor, mean: Tensor | None, rstd: Tensor | None, bits: int, group: int, stats: torch.dtype
) -> Packed:
    """Keep x, or (x - mean) rstd, as codes to the nearest; `affine_pack_plain` defines it."""
    if not (x.is_cpu and native.reads(x.dtype, stats)):
        return affine_pack_plain(x, mean, rstd, bits, group, stats)
    low, step, codes = _empty(x, mean, rstd, bits, group, stats)
    rows = [t for t in (mean, rstd) if t is not None]
    if x.is_contiguous() and all(t.is_contiguous() and t.dtype == torch.float32 for t in rows):
        chunks, row = iter((x,)), x.shape[-1] if x.ndim else 1
    else:
        chunks, mean, rstd, row = _chunks(x, mean, rstd, group), None, None, 1
    start = 0
    for chunk in chunks:
        kernel = f"affine_pack_{native.name(chunk.dtype)}_{native.name(stats)}"
        counts = (row, start, chunk.numel(), x.numel(), group, bits)
        native.call(kernel, chunk, mean, rstd, *counts, low, step, codes)
        start += chunk.numel()
    return low, step, codes


def _empty(
    x: Tensor, mean: Tensor | None, rstd: Tensor | None, bits: int, group: int, stats: torch.dtype
) -> Packed:
    count = x.numel()
    low, step = (x.new_empty(-(-count // group), dtype=stats) for _ in range(2))
    return low, step, x.new_empty(packed_bytes(count, bits), dtype=torch.uint8)


affine_pack.register_fake(_empty)


@torch.library.custom_op(
    "lowtide::affine_unpack",
    mutates_args=(),
    schema="(Tensor low, Tensor step, Tensor codes, SymInt[] shape, int bits, int group,"
    " ScalarType dtype) -> Tensor",
)
def affine_unpack(
    low: Tensor,
    step: Tensor,
    codes: Tensor,
    shape: list[int],
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    """Give back what `affine_pack` kept; `affine_unpack_plain` defines it."""
    if not (low.is_cpu and native.reads(dtype, low.dtype)):
        return affine_unpack_plain(low, step, codes, shape, bits, group, dtype)
    x = low.new_empty(shape, dtype=dtype)
    kernel = f"affine_unpack_{native.name(dtype)}_{native.name(low.dtype)}"
    native.call(kernel, low, step, codes, x.numel(), group, bits, x)
    return x


@affine_unpack.register_fake
def _(
    low: Tensor,
    step: Tensor,
    codes: Tensor,
    shape: list[int],
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    return low.new_empty(shape, dtype=dtype)

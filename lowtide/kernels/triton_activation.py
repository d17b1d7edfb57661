"""An activation function and the codes of its slope on a GPU, in Triton: x is read once."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from .activation import FUNCTIONS, activation_pack, activation_pack_plain
from .bits import packed_bytes
from .threshold_codes import floats_below
from .triton import DTYPES, EXACT, NUMBERS, _rounded, _store_codes, _table

NAMES = tuple(FUNCTIONS)
PIECE = 1 << 22
"""Numbers that a kernel's result is compared for at a time."""
BITS_OF = {2: torch.int16, 4: torch.int32}

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _activated(x, FUNCTION: tl.constexpr):
    if FUNCTION == 0:
        y = x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    elif FUNCTION == 1:
        # Torch's exp; Triton's own is an approximation, but all that the interpreter has.
        if INTERPRETED:
            e = tl.exp(-x)
        else:
            e = libdevice.exp(-x)
        y = tl.div_rn(x, 1.0 + e)
    else:
        y = tl.where(x < 0.0, 0.0, x)
    return y


@triton.jit(do_not_specialize=["count", "n"])
def _activation_pack(
    x,
    edges,
    codes,
    y,
    out,
    count,
    n,
    FUNCTION: tl.constexpr,
    PACK: tl.constexpr,
    BITS: tl.constexpr,
    SIZE: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * SIZE
    at = first + tl.arange(0, SIZE)
    here = at < n
    v = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    tl.store(y + at, _rounded(_activated(v, FUNCTION), y.dtype.element_ty), mask=here)
    if PACK:
        below = tl.zeros((SIZE,), tl.int32)
        for j in range(count):
            below += (v > tl.load(edges + j)).to(tl.int32)
        code = tl.load(codes + below).to(tl.int32)
        _store_codes(tl.where(here, code, 0), out, first, n, BITS, SIZE)


def activated(x: Tensor, function: str) -> Tensor:
    """Compute an activation function with the kernel, keeping no codes.

    Args:
        x: Contiguous numbers in one of `DTYPES`.
        function: A key of `FUNCTIONS`.

    Returns:
        What the kernel gives; `equals_torch` says whether that is torch's result.
    """
    y = torch.empty_like(x)
    fixed = {"FUNCTION": NAMES.index(function), "PACK": False, "BITS": 1, "SIZE": NUMBERS}
    grid = (triton.cdiv(x.numel(), NUMBERS),)
    _activation_pack[grid](x, x, x, y, y, 0, x.numel(), **fixed, **EXACT)
    return y


@functools.cache
def equals_torch(function: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Say whether the kernel gives torch's result to the last bit: for every number that there is.

    A forward must not change by what is kept, and whether two compilers round a function alike is
    for the device to say. It is asked once: 2^16 numbers, in float32 2^32, a fraction of a second.

    Args:
        function: A key of `FUNCTIONS`.
        dtype: One of `DTYPES`.
        device: Where.

    Returns:
        Whether all results have the same bits, or are both no number.
    """
    numbers, raw = 1 << 8 * dtype.itemsize, BITS_OF[dtype.itemsize]
    for first in range(0, numbers, PIECE):
        last = min(numbers, first + PIECE)
        x = torch.arange(first, last, device=device).to(raw).view(dtype)
        ours, theirs = activated(x, function), FUNCTIONS[function](x)
        same = (ours.view(raw) == theirs.view(raw)) | (ours.isnan() & theirs.isnan())
        if not bool(same.all()):
            return False
    return True


def activation_pack_triton(
    x: Tensor, function: str, edges: Sequence[float], codes: Sequence[int], bits: int
) -> tuple[Tensor, Tensor]:
    """Run `activation_pack` on a GPU; what torch rounds otherwise is torch's, and packed then."""
    plain = x.dtype not in DTYPES or not x.is_contiguous() or not x.numel()
    # A graph that is being captured cannot wait for an answer.
    if plain or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return activation_pack_plain(x, function, edges, codes, bits)
    if not equals_torch(function, x.dtype, x.device):
        return activation_pack_plain(x, function, edges, codes, bits)
    y, n = torch.empty_like(x), x.numel()
    out = x.new_empty(packed_bytes(n, bits), dtype=torch.uint8)
    near = _table(floats_below(tuple(edges)), torch.float32, x.device)
    rising = _table(tuple(codes), torch.int32, x.device)
    fixed = {"FUNCTION": NAMES.index(function), "PACK": True, "BITS": bits, "SIZE": NUMBERS}
    grid = (triton.cdiv(n, NUMBERS),)
    _activation_pack[grid](x, near, rising, y, out, len(edges), n, **fixed, **EXACT)
    return y, out


activation_pack.register_kernel("cuda")(activation_pack_triton)

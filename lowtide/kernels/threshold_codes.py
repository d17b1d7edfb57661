"""Threshold codes: a step function of x, kept as the number of the step in a few bits.

The kernels of the codebook and the sign codec. The step function stands for the derivative of an
activation function, as in Few-Bit Backward (Novikov et al. 2022, arXiv:2202.00441).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import native
from .bits import join, pack_bits, packed_bytes, split, unpack_bits
from .slices import slices, wide

REACH, STEPS = 64.0, 1 << 16
"""Where edges are looked for: beyond, the slope of an activation function is constant."""
CELLS = 4096
"""Cells between the outer edges, in which the plain definition looks an edge up."""


@torch.compiler.assume_constant_result
def threshold_table(
    function: Callable[[Tensor], Tensor], cuts: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Tabulate a step function: the cuts, and the value between each two of them.

    Edges are found by bisection in float64, to the last bit, so that comparing x with them gives
    the code of any float32 exactly, without computing the function. An up and down inside one of
    the 65,536 steps over [-64, 64] would be missed; there both codes are as good.

    Args:
        function: A function of each number by itself.
        cuts: Rising; a code is the number of cuts below the function's value.

    Returns:
        Edges, rising, and codes, one more: `codes[j]` is that of x if edges[j - 1] < x <= edges[j].
    """
    return _threshold_table(function, cuts)


@functools.cache
def _threshold_table(
    function: Callable[[Tensor], Tensor], cuts: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    with _disable_current_modes(), torch.no_grad():
        grid = torch.linspace(-REACH, REACH, STEPS + 1, dtype=torch.float64)
        between = torch.tensor(cuts, dtype=torch.float64)
        codes = torch.bucketize(function(grid), between)
        steps = (codes[1:] != codes[:-1]).nonzero().flatten()
        # Doubles in their order, as integers.
        low, high = _ordinal(grid[steps]), _ordinal(grid[steps + 1])
        first = codes[steps]
        for _ in range(64):
            middle = (low >> 1) + (high >> 1) + (low & high & 1)
            same = torch.bucketize(function(_double(middle)), between) == first
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        if len(steps) == 0:  # one code: an edge that nothing lies above
            return (math.inf,), (int(codes[0]),) * 2
        return tuple(_double(low).tolist()), (int(codes[0]), *codes[steps + 1].tolist())


def _ordinal(x: Tensor) -> Tensor:
    raw = (x + 0.0).view(torch.int64)
    return torch.where(raw < 0, -(raw & 0x7FFFFFFFFFFFFFFF), raw)


def _double(ordinal: Tensor) -> Tensor:
    size = ordinal.abs().view(torch.float64)
    return torch.where(ordinal < 0, -size, size)


def floats_below(edges: tuple[float, ...]) -> tuple[float, ...]:
    """Round edges to float32 without moving a float32 from one side to the other.

    Args:
        edges: In float64.

    Returns:
        The largest float32 not above each: x > edge says the same of both.
    """
    exact = torch.tensor(edges, dtype=torch.float64)
    near = exact.float()
    return tuple(torch.where(near > exact, near.nextafter(near - torch.inf), near).tolist())


def threshold_pack_plain(
    x: Tensor, edges: Sequence[float], codes: Sequence[int], bits: int
) -> Tensor:
    """Define `threshold_pack` in plain PyTorch.

    Args:
        x: Numbers, any layout.
        edges: Rising.
        codes: One more than edges.
        bits: Width of a code.

    Returns:
        codes[number of edges below x], (bytes,).
    """
    if x.dtype == torch.float64:
        at = torch.tensor(edges, dtype=torch.float64, device=x.device)
    else:
        at = torch.tensor(floats_below(tuple(edges)), device=x.device)
    table = torch.tensor(codes, dtype=torch.uint8, device=x.device)
    packed = []
    for chunk in slices((x,), 8, wide):
        packed.append(pack_bits(table.index_select(0, _count_edges_below(chunk, at)), bits))
    return join(packed, x)


def _count_edges_below(x: Tensor, edges: Tensor) -> Tensor:
    """Do what torch.bucketize(x, edges) does, on a CPU six times faster: a cell, then its edges."""
    if len(edges) < 4:
        return torch.stack([x > edge for edge in edges]).sum(0, dtype=torch.int32)
    low, high = edges[0], edges[-1]
    cells = torch.arange(-1, CELLS + 1, device=x.device, dtype=edges.dtype)
    # One cell of slack to either side for what rounding may do.
    least = torch.bucketize(low + (cells[:-1] - 1) * (high - low) / CELLS, edges)
    most = torch.bucketize(low + (cells[1:] + 1) * (high - low) / CELLS, edges)
    after = torch.cat((edges, edges.new_full((1,), torch.inf)))
    cell = ((x - low) * (CELLS / (high - low)) + 1).clamp_(0, CELLS).int().clamp_(0)
    below = least.int().index_select(0, cell)
    for _ in range(int((most - least).max())):
        below += x > after.index_select(0, below)
    return below


def threshold_unpack_plain(
    codes: Tensor, levels: Sequence[float], shape: list[int], bits: int, dtype: torch.dtype
) -> Tensor:
    """Define `threshold_unpack` in plain PyTorch.

    Args:
        codes: Codes (bytes,).
        levels: The value of each code.
        shape: Shape of the numbers.
        bits: Width of a code.
        dtype: Dtype of the numbers.

    Returns:
        levels[code].
    """
    count = torch.Size(shape).numel()
    code = unpack_bits(split(codes, bits, count), bits, count)
    table = torch.tensor(levels, dtype=dtype, device=codes.device)
    return table.index_select(0, code.int()).view(shape)


def threshold_scale_plain(dy: Tensor, codes: Tensor, levels: Sequence[float], bits: int) -> Tensor:
    """Define `threshold_scale` in plain PyTorch.

    Args:
        dy: Numbers in the shape of what was packed.
        codes: Codes (bytes,).
        levels: The value of each code.
        bits: Width of a code.

    Returns:
        dy levels[code], contiguous.
    """
    slope = threshold_unpack_plain(codes, levels, list(dy.shape), bits, dy.dtype)
    return slope.mul_(dy)


@torch.library.custom_op(
    "lowtide::threshold_pack",
    mutates_args=(),
    schema="(Tensor x, float[] edges, int[] codes, int bits) -> Tensor",
)
def threshold_pack(x: Tensor, edges: list[float], codes: list[int], bits: int) -> Tensor:
    """Keep the codes of a step function of x; `threshold_pack_plain` defines it."""
    if not (x.is_cpu and native.reads(x.dtype)):
        return threshold_pack_plain(x, edges, codes, bits)
    packed, start = _empty(x, edges, codes, bits), 0
    table = (tuple(edges), tuple(codes), len(edges), bits)
    for chunk in (x,) if x.is_contiguous() else slices((x,), 8, wide):
        kernel, counts = f"threshold_pack_{native.name(chunk.dtype)}", (chunk.numel(), x.numel())
        native.call(kernel, chunk, start, *counts, *table, packed)
        start += chunk.numel()
    return packed


@threshold_pack.register_fake
def _empty(x: Tensor, edges: list[float], codes: list[int], bits: int) -> Tensor:
    return x.new_empty(packed_bytes(x.numel(), bits), dtype=torch.uint8)


@torch.library.custom_op(
    "lowtide::threshold_unpack",
    mutates_args=(),
    schema="(Tensor codes, float[] levels, SymInt[] shape, int bits, ScalarType dtype) -> Tensor",
)
def threshold_unpack(
    codes: Tensor, levels: list[float], shape: list[int], bits: int, dtype: torch.dtype
) -> Tensor:
    """Turn codes into the values of the steps; `threshold_unpack_plain` defines it."""
    if not (codes.is_cpu and native.reads(dtype)):
        return threshold_unpack_plain(codes, levels, shape, bits, dtype)
    x = codes.new_empty(shape, dtype=dtype)
    kernel = f"threshold_unpack_{native.name(dtype)}"
    native.call(kernel, codes, x.numel(), _every_code(levels, bits), bits, None, x)
    return x


@threshold_unpack.register_fake
def _(
    codes: Tensor, levels: list[float], shape: list[int], bits: int, dtype: torch.dtype
) -> Tensor:
    return codes.new_empty(shape, dtype=dtype)


@torch.library.custom_op(
    "lowtide::threshold_scale",
    mutates_args=(),
    schema="(Tensor dy, Tensor codes, float[] levels, int bits) -> Tensor",
)
def threshold_scale(dy: Tensor, codes: Tensor, levels: list[float], bits: int) -> Tensor:
    """Multiply a gradient with the values; `threshold_scale_plain` defines it."""
    if not (dy.is_cpu and native.reads(dy.dtype)):
        return threshold_scale_plain(dy, codes, levels, bits)
    dx = dy.new_empty(dy.shape)
    # In place where dy has another layout: a second copy would be memory no plan counts.
    dy = dy if dy.is_contiguous() else dx.copy_(dy)
    kernel = f"threshold_unpack_{native.name(dy.dtype)}"
    native.call(kernel, codes, dy.numel(), _every_code(levels, bits), bits, dy, dx)
    return dx


@threshold_scale.register_fake
def _(dy: Tensor, codes: Tensor, levels: list[float], bits: int) -> Tensor:
    return dy.new_empty(dy.shape)


def _every_code(levels: Sequence[float], bits: int) -> tuple[float, ...]:
    return (*levels, *(0.0,) * (2**bits - len(levels)))

"""NF4's codes and doubly quantised scales as numbers again: an op of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .affine import in_groups
from .threshold_codes import threshold_unpack

LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""NF4, as printed in appendix E of QLoRA (Dettmers et al. 2023).

The quantiles of a normal distribution at 8 even steps from 1 - d to 1/2 and 9 from 1/2 to d with
d = 1 - (1/30 + 1/32) / 2, the two zeros being one, divided by the largest.
"""
EXPONENTS = 7
"""Powers of ten of the scales' 8-bit numbers."""


def dynamic_tree() -> tuple[float, ...]:
    """List the 8-bit numbers of dynamic tree quantisation.

    Returns:
        256 rising numbers from -0.993 to 1: for i = 0..6 the middles of 2^i even parts of [0.1, 1],
        times 10^(i - 6), with both signs; 0; and 1.
    """
    found = [0.0, 1.0]
    for i in range(EXPONENTS):
        parts = 2**i
        middles = [0.1 + 0.9 * (j + 0.5) / parts for j in range(parts)]
        found += [sign * m * 10.0 ** (i - EXPONENTS + 1) for m in middles for sign in (-1, 1)]
    return tuple(sorted(found))


TREE = dynamic_tree()
"""The levels of a scale."""


def tree_on(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Make the table of a scale's levels.

    Args:
        device: Where.
        dtype: Its dtype.

    Returns:
        (256,).
    """
    return torch.tensor(TREE, device=device, dtype=dtype)


def scales_plain(
    mean: Tensor, most: Tensor, scales: Tensor, second: int, dtype: torch.dtype
) -> Tensor:
    """Compute the scales from their codes, s' = mean + most level.

    Args:
        mean: Of all scales (1,).
        most: The scale of each `second` scales.
        scales: Codes of the scales (blocks,).
        second: Scales that share their own.
        dtype: Dtype of the scales.

    Returns:
        The scale of each block (blocks,).
    """
    each = in_groups(tree_on(scales.device, dtype).index_select(0, scales.int()), second)
    return each.mul_(most.to(dtype)[:, None]).add_(mean.to(dtype)).flatten()[: len(scales)]


def normal_float_unpack_plain(
    mean: Tensor,
    most: Tensor,
    scales: Tensor,
    codes: Tensor,
    shape: list[int],
    block: int,
    second: int,
    dtype: torch.dtype,
) -> Tensor:
    """Define `normal_float_unpack` in plain PyTorch.

    Args:
        mean: Of all scales (1,).
        most: The scale of each `second` scales.
        scales: Codes of the scales (blocks,).
        codes: Codes of the numbers (bytes,).
        shape: Shape of the numbers.
        block: Numbers that share a scale.
        second: Scales that share their own.
        dtype: Dtype of the numbers.

    Returns:
        s' level, rounded once at the end.
    """
    compute = dtype if dtype.itemsize >= 4 else torch.float32
    each = scales_plain(mean, most, scales, second, compute)
    count = torch.Size(shape).numel()
    x = threshold_unpack(codes, list(LEVELS), [count], 4, compute)
    whole = count // block * block
    if whole:
        x[:whole].view(-1, block).mul_(each[: whole // block, None])
    if whole < count:
        x[whole:].mul_(each[-1])
    return x.view(shape).to(dtype)


normal_float_unpack = torch.library.custom_op(
    "lowtide::normal_float_unpack",
    normal_float_unpack_plain,
    mutates_args=(),
    schema="(Tensor mean, Tensor most, Tensor scales, Tensor codes, SymInt[] shape, int block,"
    " int second, ScalarType dtype) -> Tensor",
)
"""Widens a weight in NF4; `normal_float_unpack_plain` defines it."""


@normal_float_unpack.register_fake
def _(
    mean: Tensor,
    most: Tensor,
    scales: Tensor,
    codes: Tensor,
    shape: list[int],
    block: int,
    second: int,
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty(shape, dtype=dtype)

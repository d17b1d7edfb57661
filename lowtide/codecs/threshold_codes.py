"""A residue as the number of cuts below each value: what the codebook and the sign codec share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.bits import join, split
from ..kernels.threshold_codes import (
    threshold_pack,
    threshold_scale,
    threshold_table,
    threshold_unpack,
)
from .base import Residue


def middles(levels: Sequence[float]) -> tuple[float, ...]:
    """Cut halfway between levels, so that a code is that of the nearest.

    Args:
        levels: Rising.

    Returns:
        One cut fewer than levels.
    """
    return tuple((a + b) / 2 for a, b in itertools.pairwise(levels))


def pack(residue: Residue, cuts: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Keep the codes; of a pointwise residue, without computing it.

    Args:
        residue: What to keep.
        cuts: Rising; a code is the number of cuts below a value.

    Returns:
        The codes as bytes.
    """
    bits = len(cuts).bit_length()
    if residue.pointwise:
        edges, codes = threshold_table(residue.of, cuts)
        return (threshold_pack(residue.source.detach(), list(edges), list(codes), bits),)
    plain = list(cuts), list(range(len(cuts) + 1)), bits
    chunks = [split(threshold_pack(p, *plain), bits, len(p)) for p in residue.slices(8)]
    return (join(chunks, residue.source),)


def unpack(
    packed: tuple[Tensor, ...], levels: tuple[float, ...], shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """Look the codes up.

    Args:
        packed: What `pack` gave.
        levels: The value of each code.
        shape: Shape of the residue.
        dtype: Dtype of the residue.

    Returns:
        levels[code].
    """
    bits = (len(levels) - 1).bit_length()
    return threshold_unpack(packed[0], list(levels), list(shape), bits, dtype)


def scale(packed: tuple[Tensor, ...], levels: tuple[float, ...], dy: Tensor) -> Tensor:
    """Multiply a gradient with what the codes stand for, in one pass.

    Args:
        packed: What `pack` gave.
        levels: The value of each code.
        dy: A gradient in the shape of the residue.

    Returns:
        dy levels[code].
    """
    return threshold_scale(dy, packed[0], list(levels), (len(levels) - 1).bit_length())

"""Small codes side by side in bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def fields(bits: int) -> tuple[int, ...]:
    """Split a width into widths that divide a byte, e.g. 3 = 2 + 1.

    Args:
        bits: Width of a code, 1 to 8.

    Returns:
        Powers of two, largest first, that sum to `bits`.
    """
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def packed_bytes(count: int, bits: int) -> int:
    """Count the bytes of `count` codes.

    Args:
        count: How many codes.
        bits: Width of a code.

    Returns:
        Bytes, each field of the width filled up to whole bytes.
    """
    return sum(-(-count * width // 8) for width in fields(bits))


def pack_bits(codes: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Put codes side by side; the first lies in the lowest bits.

    Args:
        codes: (n,) uint8, each below 2^bits.
        bits: Width of a code.

    Returns:
        One uint8 tensor per field of the width.
    """
    packed = []
    for width in fields(bits):
        per_byte = 8 // width
        field = codes if width == bits else codes & (2**width - 1)
        codes = codes if width == bits else codes >> width
        if missing := -len(field) % per_byte:
            field = torch.cat((field, field.new_zeros(missing)))
        byte = field[::per_byte]
        for place in range(1, per_byte):
            byte = byte | field[place::per_byte] << place * width
        packed.append(byte)
    return tuple(packed)


def unpack_bits(packed: tuple[Tensor, ...], bits: int, count: int) -> Tensor:
    """Undo `pack_bits`.

    Args:
        packed: What `pack_bits` gave.
        bits: Width of a code.
        count: How many codes there are.

    Returns:
        (count,) uint8.
    """
    codes, shift = None, 0
    for byte, width in zip(packed, fields(bits), strict=True):
        places = range(0, 8, width)
        field = torch.stack([byte >> p & 2**width - 1 for p in places], -1) if width < 8 else byte
        field = field.flatten()[:count]
        codes = field if codes is None else codes | field << shift
        shift += width
    assert codes is not None
    return codes


def join(chunks: list[tuple[Tensor, ...]], like: Tensor) -> Tensor:
    """Put packed chunks together: every field's bytes in one stretch, the widest field first.

    Args:
        chunks: `pack_bits` of each chunk, all but the last with a multiple of 8 codes.
        like: A tensor on their device, for when there are none.

    Returns:
        (bytes,) uint8.
    """
    if len(chunks) == 1 and len(chunks[0]) == 1:
        return chunks[0][0]
    if not chunks:
        return like.new_empty(0, dtype=torch.uint8)
    return torch.cat([part for field in zip(*chunks, strict=True) for part in field])


def split(codes: Tensor, bits: int, count: int) -> tuple[Tensor, ...]:
    """Split into fields what `join` put together.

    Args:
        codes: (bytes,) uint8.
        bits: Width of a code.
        count: How many codes there are.

    Returns:
        One view per field of the width.
    """
    return codes.split([-(-count * width // 8) for width in fields(bits)])

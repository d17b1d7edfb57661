"""A codebook gives the nearest of its levels."""

from __future__ import annotations

import pytest
import torch
from kept import stored_bytes

from lowtide.codecs.base import Residue
from lowtide.codecs.codebook import Codebook
from lowtide.codecs.codebook_tables import LEVELS
from lowtide.ops import activation_derivatives as slopes

BOOKS = {f"{name}{b}": Codebook.of(name, b) for name in LEVELS for b in (1, 2, 3, 4)}


@pytest.mark.parametrize("name", BOOKS)
def test_codebooks(name: str) -> None:
    codec, slope = BOOKS[name], getattr(slopes, name[:-1])
    x = torch.cat((torch.linspace(-9, 9, 4001), torch.tensor([-1e6, 1e6])))
    residue = Residue(x, slope)
    packed = codec.pack(residue)
    assert stored_bytes(packed) == codec.nbytes(x.shape, x.dtype)
    again = codec.unpack(packed, x.shape, x.dtype)
    error = (again - slope(x)).abs()
    assert (error <= codec.bound(slope(x))).all()
    # The nearest level, by hand.
    levels = torch.tensor(codec.levels)
    nearest = (slope(x)[:, None] - levels).abs().amin(1)
    assert torch.allclose(error, nearest, atol=(levels[-1] - levels[0]).item() / 4096)


def test_more_bits_err_less() -> None:
    x = torch.randn(4000)
    for function in LEVELS:
        residue, rms = Residue(x, getattr(slopes, function)), []
        for bits in (1, 2, 3, 4):
            codec = Codebook.of(function, bits)
            again = codec.unpack(codec.pack(residue), x.shape, x.dtype)
            rms.append((again - residue.of(x)).square().mean().sqrt())
        assert rms[0] > 1.7 * rms[1] > 2.8 * rms[2] > 4.5 * rms[3]

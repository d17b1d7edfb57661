"""The sine's slope is that of S2A, in four bits."""

from __future__ import annotations

import pytest
import torch
from kept import stored_bytes

from lowtide.codecs.base import Residue
from lowtide.codecs.sine import Sine
from lowtide.ops import activation_derivatives as slopes


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
@pytest.mark.parametrize("rate", [1.702, 1.0])
def test_sine_against_its_formula(rate: float, rounding: str) -> None:
    """Equations 8, 9 and 12 of S2A, written out on their own."""
    x = torch.randn(5, 33)
    u = x * rate / 1.702  # the variable of the paper's GELU
    u = u.clamp(-2, 2)
    low, high = u.min(), u.max()
    s = (high - low) / 15
    q = (u - low) / s
    moved = q if rounding == "floor" else q + 0.5
    safe = (moved - moved.round()).abs() > 1e-4  # not on the edge of two codes
    q = moved.floor()
    u_hat = q * s + low
    expected = torch.sigmoid(1.702 * u_hat) + 0.22 * torch.sin(1.5 * u_hat)
    codec = Sine(rate, rounding=rounding)
    packed = codec.pack(Residue(x, slopes.quick_gelu))
    again = codec.unpack(packed, x.shape, x.dtype)
    assert safe.float().mean() > 0.5
    assert torch.allclose(again[safe], expected[safe], atol=1e-5)
    assert stored_bytes(packed) == codec.nbytes(x.shape, x.dtype) == 83 + 8


@pytest.mark.parametrize("rate", [1.702, 1.0])
def test_sine_stays_in_its_bound(rate: float) -> None:
    x = torch.linspace(-8, 8, 5001)
    slope = slopes.quick_gelu if rate == 1.702 else slopes.silu
    for rounding in ("nearest", "floor"):
        codec = Sine(rate, rounding=rounding)
        again = codec.unpack(codec.pack(Residue(x)), x.shape, x.dtype)
        error, bound = (again - slope(x)).abs(), codec.bound(x)
        assert (error <= bound).all() and error.max() > 0.4 * bound.max()

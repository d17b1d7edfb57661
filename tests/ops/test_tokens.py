"""Layers that treat every token by itself, recomputed some tokens at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lowtide.codecs.affine import Affine
from lowtide.codecs.base import Codec, Residue
from lowtide.ops.attention_recompute import recompute
from lowtide.ops.saved import EXACT
from lowtide.ops.tokens import in_pieces, scaled

SIZES = [[12], [5, 7], [4, 4, 4]]
CODECS = {"exact": EXACT, "part": Affine(8, 4), "whole": Affine(3, 16)}
"""Of the last no tokens can be read alone."""


class Layers(nn.Module):
    """A gated MLP that counts its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(8, 10), nn.Linear(5, 6)
        self.scale = nn.Parameter(torch.randn(6))
        self.seen = 0
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        a, b = self.wide(x).chunk(2, -1)
        return self.narrow(torch.tanh(a) * b)


def rounded(codec: Codec, x: Tensor) -> Tensor:
    x = x.detach()
    return codec.unpack(codec.pack(Residue(x)), x.shape, x.dtype)


@pytest.mark.parametrize("trained", [(), ("wide.bias",), ("wide.weight", "narrow.weight")])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_the_gradient_is_that_of_the_layers_at_what_is_kept(codec, sizes, trained) -> None:
    layers = Layers().requires_grad_(False)
    wanted = [layers.get_parameter(name).requires_grad_() for name in trained]
    x = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    y = in_pieces(layers, layers, sizes, codec, x, *layers.parameters())
    torch.testing.assert_close(y, layers(x), rtol=1e-12, atol=1e-12)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, *wanted], dy)
    at = rounded(codec, x).requires_grad_()
    expected = torch.autograd.grad(layers(at), [at, *wanted], dy)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def behind(layers: Layers, y: Tensor, what: str) -> Tensor:
    """What a block does with what its MLP gives."""
    if what == "scaled":
        product = scaled(y, layers.scale)
        assert product is not None
        return product
    return y if what == "nothing" else y * layers.scale


@pytest.mark.parametrize("what, times", [("nothing", 2), ("scaled", 2), ("multiplied", 3)])
def test_a_second_run_ends_before_layers_that_are_the_last_to_save(what, times) -> None:
    layers = Layers().requires_grad_(False)
    x = torch.randn(12, 8, dtype=torch.float64, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        y = in_pieces(layers, layers, [5, 7], EXACT, x.sin(), *layers.parameters())
        return behind(layers, y, what) + x[:, :6]

    y = recompute(block, EXACT, x)
    y.backward(dy := torch.randn_like(y))
    assert layers.seen == times * len(x)
    at = x.detach().requires_grad_()
    y = layers(at.sin())
    ((y if what == "nothing" else y * layers.scale) + at[:, :6]).backward(dy)
    torch.testing.assert_close(x.grad, at.grad, rtol=1e-12, atol=1e-12)


def test_a_trained_scale_and_other_maps_are_left_to_torch() -> None:
    layers = Layers()
    x = torch.randn(12, 8, dtype=torch.float64, requires_grad=True)
    found = []

    def block(x: Tensor) -> Tensor:
        y = in_pieces(layers, layers, [5, 7], EXACT, x.sin(), *layers.parameters())
        found.extend((scaled(y, layers.scale), scaled(x[:, :6], layers.scale.detach())))
        found.append(scaled(y, y.detach()))
        return y

    recompute(block, EXACT, x)
    assert found == [None] * 3


def test_a_weight_written_to_before_backward_is_refused() -> None:
    layers = Layers()
    x = torch.randn(12, 8, dtype=torch.float64, requires_grad=True)
    y = in_pieces(layers, layers, [5, 7], EXACT, x.sin(), *layers.parameters())
    with torch.no_grad():
        layers.wide.weight.mul_(2)
    with pytest.raises(RuntimeError, match="weight was modified"):
        y.sum().backward()

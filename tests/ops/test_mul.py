"""The gradient of a factor that was broadcast: a sum, whose product is never there whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowtide.codecs.exact import Exact
from lowtide.memory.compress import compress
from lowtide.memory.policy import Policy
from lowtide.ops import mul

SHAPES = [
    ((2, 6, 5, 4), (2, 1, 1, 4)),
    ((2, 6, 5, 4), (1, 6, 1, 1)),
    ((7, 5), (3, 7, 5)),
    ((3, 1, 5), (1, 7, 5)),
    ((3, 7, 5), (3, 7, 5)),
]


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.inner(a) * b


class Largest(TorchDispatchMode):
    """The most numbers of any product."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mul.Tensor:
            self.most = max(self.most, result.numel())
        return result


@pytest.mark.parametrize("piece", [1, 8, 1 << 20])
@pytest.mark.parametrize("a, b", SHAPES)
def test_the_gradients(a, b, piece, monkeypatch) -> None:
    monkeypatch.setattr(mul, "PIECE", piece)
    model = compress(Product(), Policy({"mul": Exact()}))
    given = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (a, b)]
    assert torch.autograd.gradcheck(model, given)


def test_the_product_is_never_there_whole(monkeypatch) -> None:
    monkeypatch.setattr(mul, "PIECE", 40)
    dy, x = (torch.randn(2, 6, 5, 4, dtype=torch.float64) for _ in range(2))
    with Largest() as seen:
        found = mul._summed(dy, x, torch.Size((2, 1, 1, 4)))
    torch.testing.assert_close(found, (dy * x).sum((1, 2), keepdim=True), rtol=1e-12, atol=1e-12)
    assert seen.most == 40

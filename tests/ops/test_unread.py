"""A linear map whose numbers nobody reads: its gradients are those of the map; it is not run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowtide.memory.frozen_dtype import pack_frozen
from lowtide.ops.unread import Unread

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func in PRODUCTS
        return func(*args, **(kwargs or {}))


def layer(kind: str, bias: bool) -> tuple[nn.Module, nn.Parameter]:
    linear = nn.Linear(64, 16, bias=bias)
    if kind == "trained":
        return linear, linear.weight
    linear.weight.requires_grad_(False)
    if kind == "frozen":
        return linear, linear.weight
    holder = nn.Sequential(linear)
    pack_frozen(holder, kind)
    return holder[0], holder[0].packed


@pytest.mark.parametrize("low", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["trained", "frozen", "bf16", "nf4"])
def test_the_gradients_are_those_of_the_map(kind: str, bias: bool, low: bool) -> None:
    module, weight = layer(kind, bias)
    x = torch.randn(2, 5, 64, requires_grad=True)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    found: list[tuple[Tensor, ...]] = []
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        y = module(x)
        with Products() as seen, Unread(weight):
            unread = module(x)
        assert seen.count == 0
        assert (unread.shape, unread.dtype) == (y.shape, y.dtype)
    dy = torch.randn_like(y)
    found = [torch.autograd.grad(out, wanted, dy) for out in (y, unread)]
    for theirs, mine in zip(*found, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs)


def test_other_maps_are_run() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    x = torch.randn(3, 4)
    with Unread(second.weight):
        assert torch.equal(first(x), nn.functional.linear(x, first.weight, first.bias))

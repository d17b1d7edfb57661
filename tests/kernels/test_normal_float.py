"""NF4's codes as numbers again, by an op of its own: the numbers of one step after the other."""

from __future__ import annotations

import pytest
import torch
from dispatched import Called, on_fake_cuda
from torch._subclasses import FakeTensorMode

from lowtide.codecs import normal_float
from lowtide.codecs.base import Residue
from lowtide.codecs.normal_float import NormalFloat
from lowtide.kernels.normal_float import LEVELS, dynamic_tree, normal_float_unpack
from lowtide.ops.frozen import Slabs, frozen_linear

CODEC = NormalFloat(16, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(9, 33), (4,), (3, 64), (0, 5)])
def test_a_number_is_its_level_times_the_scale_of_its_block(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    packed = CODEC.pack(Residue(torch.randn(shape)))
    ours = normal_float_unpack(*packed, list(shape), 16, 4, dtype)
    mean, most, scales, codes = (t.tolist() for t in packed)
    tree, numbers = dynamic_tree(), []
    for i in range(ours.numel()):
        scale = mean[0] + most[i // 16 // 4] * tree[scales[i // 16]]
        numbers.append(LEVELS[codes[i // 2] >> 4 * (i % 2) & 15] * scale)
    theirs = torch.tensor(numbers, dtype=torch.float64).view(shape).to(dtype)
    torch.testing.assert_close(ours, theirs)


def test_where_it_runs_a_linear_map_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    slabs, packed = Slabs.pack(CODEC, torch.randn(7, 33))
    x, dy = torch.randn(5, 33, requires_grad=True), torch.randn(5, 7)

    def both() -> list[torch.Tensor]:
        y = frozen_linear(x, packed, None, slabs)
        return [y, *torch.autograd.grad(y, x, dy)]

    apart, calls = both(), []
    monkeypatch.setattr(normal_float, "FUSED", {"cpu"})
    monkeypatch.setattr(
        normal_float, "normal_float_unpack", lambda *a: calls.append(a) or normal_float_unpack(*a)
    )
    for a, b in zip(both(), apart, strict=True):
        assert torch.equal(a, b)
    assert len(calls) == 2


@on_fake_cuda
def test_on_a_gpu_a_weight_is_widened_by_one_kernel() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        slabs, packed = Slabs.pack(CODEC, torch.empty(7, 33))
        with Called() as called:
            frozen_linear(torch.empty(5, 33), packed, None, slabs)
    made = set(called.names)
    assert "lowtide::normal_float_unpack" in made
    assert not {"aten::mul_", "aten::index_select", "lowtide::threshold_unpack"} & made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_takes_it_as_an_op_of_its_own(dtype: torch.dtype) -> None:
    packed = CODEC.pack(Residue(torch.randn(9, 33)))
    torch.library.opcheck(normal_float_unpack, (*packed, [9, 33], 16, 4, dtype))

"""An activation function and its slope's codes of one kernel: the numbers of two, and taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dispatched import Called, on_fake_cuda
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from lowtide import compress
from lowtide.kernels.activation import FUNCTIONS, activation_pack
from lowtide.kernels.threshold_codes import threshold_pack
from lowtide.ops import unary
from lowtide.ops.region import discarding
from lowtide.ops.unary import TIGHT, activate

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TABLE = [-0.5, 0.25], [2, 0, 1], 2


def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the kernel is said to be on the CPU: which functions it is asked for."""
    calls: list[str] = []
    monkeypatch.setattr(unary, "FUSED", {"cpu"})
    monkeypatch.setattr(
        unary, "activation_pack", lambda *a: calls.append(a[1]) or activation_pack(*a)
    )
    return calls


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(3, 7, 13), (), (0, 5)])
def test_results_and_gradients_are_those_of_two_steps(
    shape: tuple[int, ...], name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = (2 * torch.randn(shape, dtype=dtype)).requires_grad_()
    dy = torch.randn(shape, dtype=dtype)

    def both() -> tuple[Tensor, Tensor]:
        y = activate(name, TIGHT, FUNCTIONS[name], x)
        return y, *torch.autograd.grad(y, x, dy)

    apart = both()
    calls = taken(monkeypatch)
    for a, b in zip(both(), apart, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert calls == [name]


def test_a_layout_is_torchs_and_another_function_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = taken(monkeypatch)
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = activate("gelu", TIGHT, F.gelu, x)
    assert torch.equal(y, F.gelu(x)) and y.stride() == x.stride()
    y.sum().backward()
    written_out = activate("silu", TIGHT, lambda x: x * torch.sigmoid(x), x)
    assert torch.equal(written_out, x * torch.sigmoid(x)) and calls == ["gelu"]


def test_what_runs_again_in_backward_packs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = taken(monkeypatch)
    with discarding():
        activate("gelu", TIGHT, F.gelu, torch.randn(3, 5, requires_grad=True))
    assert not calls


@pytest.mark.parametrize("shape", [(4, 50), (0,)])
def test_torch_takes_it_as_an_op_of_its_own(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    torch.library.opcheck(activation_pack, (x, "gelu", *TABLE))
    y, codes = activation_pack(x, "gelu", *TABLE)
    assert torch.equal(y, F.gelu(x)) and torch.equal(codes, threshold_pack(x, *TABLE))


@on_fake_cuda
@pytest.mark.parametrize(("device", "at_once"), [("cuda", 2), ("cpu", 0)])
def test_a_model_on_a_gpu_takes_it(device: str, at_once: int) -> None:
    """On tensors that have a device and no storage: a card is not needed to see what is called."""
    with FakeTensorMode():
        with torch.device(device):
            layers = (nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.ReLU())
        model = compress(nn.Sequential(*layers), "tight")
        with Called() as called:
            model(torch.empty(3, 8, device=device))
    assert called.names["lowtide::activation_pack"] == at_once
    assert called.names["lowtide::threshold_pack"] == 2 - at_once
    assert called.names["aten::gelu"] == 1 - at_once // 2
    assert called.names["aten::native_layer_norm"] == called.names["lowtide::affine_pack"] == 1

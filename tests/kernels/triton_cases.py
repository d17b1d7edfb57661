"""The Triton kernels equal the plain definitions; `test_triton.py` runs this on a CPU too."""

from __future__ import annotations

import math

import pytest
import torch

from lowtide.codecs.base import Residue
from lowtide.codecs.normal_float import NormalFloat
from lowtide.kernels import triton as gpu
from lowtide.kernels import triton_activation as activation
from lowtide.kernels import triton_layer_norm as norm
from lowtide.kernels import triton_normal_float as nf
from lowtide.kernels.affine import affine_pack, affine_pack_plain, affine_unpack_plain
from lowtide.kernels.layer_norm import layer_norm_backward, layer_norm_backward_plain
from lowtide.kernels.normal_float import normal_float_unpack_plain
from lowtide.kernels.threshold_codes import (
    threshold_pack_plain,
    threshold_scale_plain,
    threshold_table,
    threshold_unpack_plain,
)
from lowtide.ops import activation_derivatives as slopes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(3, 50, 64), (3, 7, 13), (1,), (), (0, 5)]
DTYPES = [torch.float32, torch.bfloat16]
LEVELS = [i / 10 for i in range(11)]
EDGES, CODES = map(list, threshold_table(slopes.gelu, tuple((i + 0.5) / 10 for i in range(10))))


@pytest.fixture(autouse=True)
def _repeatable():
    """The same numbers each time, and no number in memory that nobody has written to."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def randn(shape, dtype=torch.float32):
    return torch.randn(shape).to(DEVICE, dtype)


def equal(ours, theirs) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "group"), [(b, 64) for b in range(1, 9)] + [(4, 8), (6, 2048)])
def test_affine(bits, group, shape, dtype) -> None:
    x = randn(shape, dtype)
    for stats in DTYPES:
        packed = gpu.affine_pack_triton(x, None, None, bits, group, stats)
        equal(packed, affine_pack_plain(x, None, None, bits, group, stats))
        back = (*packed, list(shape), bits, group, dtype)
        equal([gpu.affine_unpack_triton(*back)], [affine_unpack_plain(*back)])


def test_standardised_rows_and_other_layouts() -> None:
    x = 2 + 3 * randn((4, 5, 96))
    mean, rstd = x.mean(-1, keepdim=True), 1 / x.std(-1, keepdim=True)
    given = (mean, rstd, 6, 64, torch.bfloat16)
    equal(gpu.affine_pack_triton(x, *given), affine_pack_plain(x, *given))
    swapped = (x.mT, None, None, 6, 64, torch.bfloat16)
    equal(gpu.affine_pack_triton(*swapped), affine_pack_plain(*swapped))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_hidden(bad) -> None:
    x = randn((3, 64))
    x[1, 5] = bad
    packed = gpu.affine_pack_triton(x, None, None, 4, 64, torch.bfloat16)
    again = gpu.affine_unpack_triton(*packed, [3, 64], 4, 64, torch.float32)
    assert not again[1, 5].isfinite() and again[::2].isfinite().all()


def test_ties_go_to_the_even_code() -> None:
    x = torch.tensor([[0.0, 15.0, 0.5, 1.5, 2.5, 3.5, 14.5, 13.5]], device=DEVICE)
    packed = gpu.affine_pack_triton(x, None, None, 4, 8, torch.float32)
    assert packed[2].tolist() == [0xF0, 0x20, 0x42, 0xEE]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1500)])
def test_threshold_table(shape, dtype) -> None:
    x, dy = 2 * randn(shape, dtype), randn(shape, dtype)
    packed = gpu.threshold_pack_triton(x, EDGES, CODES, 4)
    equal([packed], [threshold_pack_plain(x, EDGES, CODES, 4)])
    back = (packed, LEVELS, list(shape), 4, dtype)
    equal([gpu.threshold_unpack_triton(*back)], [threshold_unpack_plain(*back)])
    given = (dy, packed, LEVELS, 4)
    equal([gpu.threshold_scale_triton(*given)], [threshold_scale_plain(*given)])


def test_signs_and_transposed_gradients() -> None:
    x, dy = randn((33, 9)), randn((9, 33)).mT
    packed = gpu.threshold_pack_triton(x, [0.0], [0, 1], 1)
    dx = gpu.threshold_scale_triton(dy, packed, [0.0, 1.0], 1)
    assert torch.equal(dx, dy * (x > 0)) and dx.is_contiguous()


def test_a_number_on_an_edge_lies_below_it() -> None:
    edges, codes = [-1.0, 0.0, 2.0], [3, 1, 0, 2]
    x = torch.tensor([-1.0, -0.5, 0.0, 1.0, 2.0, 2.5, -0.0, -2.0], device=DEVICE)
    packed = gpu.threshold_pack_triton(x, edges, codes, 2)
    assert packed.tolist() == [0b00_01_01_11, 0b11_01_10_00]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize(
    ("shape", "bits", "group"),
    [((2, 5, 48), 4, 32), ((7, 20), 6, 64), ((16,), 8, 16), ((1, 3, 37), 3, 13)],
)
def test_layer_norm_backward(shape, bits, group, weight, trained, dtype, monkeypatch) -> None:
    monkeypatch.setattr(norm, "PROGRAMS", 3)  # rows that the programs share unevenly
    dy, rstd = randn(shape, dtype), torch.rand(*shape[:-1], 1).to(DEVICE) + 0.5
    packed = affine_pack_plain(randn(shape), None, None, bits, group, torch.bfloat16)
    w = None if weight is None else randn(shape[-1:], weight)
    given = (dy, *packed, rstd, w, bits, group, trained)
    ours, theirs = norm.layer_norm_backward_triton(*given), layer_norm_backward_plain(*given)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    close = (
        {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    )
    torch.testing.assert_close(ours[0], theirs[0], **close)
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-5, atol=1e-5)


def test_layer_norm_backward_of_no_rows_of_other_layouts_and_of_what_is_not_finite() -> None:
    given = (torch.rand(0, 1).to(DEVICE), None, 4, 8, True)
    nothing = affine_pack_plain(randn((0, 8)), None, None, 4, 8, torch.bfloat16)
    dx, dw, db = norm.layer_norm_backward_triton(randn((0, 8)), *nothing, *given)
    assert dx.shape == (0, 8) and dw.tolist() == db.tolist() == [0.0] * 8
    x, dy = randn((3, 8)), randn((8, 3)).mT
    x[1, 5] = math.nan
    packed = affine_pack_plain(x, None, None, 4, 8, torch.bfloat16)
    given = (dy, *packed, torch.rand(3, 1).to(DEVICE), None, 4, 8, False)
    ours, theirs = (
        f(*given)[0] for f in (norm.layer_norm_backward_triton, layer_norm_backward_plain)
    )
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert ours[1].isnan().all() and ours[::2].isfinite().all()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("function", activation.FUNCTIONS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1500)])
def test_an_activation_and_its_codes(shape, function, dtype, monkeypatch) -> None:
    x = 2 * randn(shape, dtype)
    given = (x, function, EDGES, CODES, 4)
    theirs = activation.FUNCTIONS[function](x), threshold_pack_plain(x, EDGES, CODES, 4)
    monkeypatch.setattr(activation, "equals_torch", lambda *a: False)
    equal(activation.activation_pack_triton(*given), theirs)
    monkeypatch.setattr(activation, "equals_torch", lambda *a: True)
    y, codes = activation.activation_pack_triton(*given)
    equal([codes], theirs[1:])
    close = {} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(y, theirs[0], **close)


def test_an_activation_in_other_layouts_and_of_what_is_not_finite(monkeypatch) -> None:
    monkeypatch.setattr(activation, "equals_torch", lambda *a: True)
    x = randn((5, 96))
    x[1, 5], x[2, 7], x[3, 9] = math.nan, math.inf, -math.inf
    for each in (x, x.mT):
        y, codes = activation.activation_pack_triton(each, "relu", EDGES, CODES, 4)
        torch.testing.assert_close(y, each.relu(), rtol=0, atol=0, equal_nan=True)
        equal([codes], [threshold_pack_plain(each, EDGES, CODES, 4)])
        assert y.stride() == each.relu().stride()


def test_the_kernel_is_taken_only_where_every_number_is_torchs(monkeypatch) -> None:
    given = (torch.float16, torch.device(DEVICE))
    monkeypatch.setattr(activation, "PIECE", 1 << 15)
    asked = activation.equals_torch.__wrapped__
    assert asked("relu", *given)

    def almost(x):
        return torch.where(x == 65504, 65472, x.relu())  # the largest number, and no other

    monkeypatch.setitem(activation.FUNCTIONS, "relu", almost)
    assert not asked("relu", *given)
    activation.equals_torch.cache_clear()
    x = torch.full((9,), 65504.0, dtype=torch.float16, device=DEVICE)
    equal(activation.activation_pack_triton(x, "relu", EDGES, CODES, 4)[:1], [x - 32])
    activation.equals_torch.cache_clear()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.float64])
@pytest.mark.parametrize(("block", "second"), [(64, 256), (16, 4), (8, 3)])
@pytest.mark.parametrize("shape", [(3, 50, 64), (3, 7, 13), (1,), (0, 5)])
def test_normal_float(shape, block, second, dtype) -> None:
    x = randn(shape)
    for bad in (False, True):
        if bad and x.numel():
            x.view(-1)[0] = math.nan
        packed = NormalFloat(block, second).pack(Residue(x))
        given = (*packed, list(shape), block, second, dtype)
        ours, theirs = nf.normal_float_unpack_triton(*given), normal_float_unpack_plain(*given)
        assert ours.dtype == theirs.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(DEVICE == "cpu", reason="the dispatcher chooses Triton for CUDA tensors")
def test_the_dispatcher_chooses_them() -> None:
    x = randn((3, 64))
    given = (x, None, None, 4, 64, torch.bfloat16)
    packed = affine_pack(*given)
    equal(packed, gpu.affine_pack_triton(*given))
    torch.library.opcheck(affine_pack, given)
    given = (x, *packed, torch.rand(3, 1, device=DEVICE), None, 4, 64, True)
    equal(layer_norm_backward(*given), norm.layer_norm_backward_triton(*given))

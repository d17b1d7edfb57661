"""The CPU kernels equal their plain definitions, bit for bit, and are torch ops like any other."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from lowtide.codecs.base import Residue
from lowtide.codecs.codebook import Codebook
from lowtide.codecs.codebook_tables import LEVELS
from lowtide.codecs.sign import Sign
from lowtide.kernels import native, slices
from lowtide.kernels.affine import (
    affine_pack,
    affine_pack_plain,
    affine_unpack,
    affine_unpack_plain,
)
from lowtide.kernels.bits import packed_bytes, split, unpack_bits
from lowtide.kernels.threshold_codes import (
    _threshold_table,
    threshold_pack,
    threshold_pack_plain,
    threshold_scale,
    threshold_scale_plain,
    threshold_table,
    threshold_unpack,
    threshold_unpack_plain,
)
from lowtide.ops import activation_derivatives as slopes
from lowtide.ops.saved import saved
from lowtide.ops.unary import UNARY

SHAPES: dict[str, Callable[[], Tensor]] = {
    "tokens": lambda: torch.randn(3, 10, 64),
    "odd": lambda: torch.randn(3, 7, 13),
    "one": lambda: torch.randn(1),
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 5),
    "permuted": lambda: torch.randn(2, 9, 3, 8).permute(0, 2, 1, 3),
    "channels": lambda: torch.randn(2, 9, 3, 8).permute(0, 3, 1, 2),
    "extreme": lambda: torch.cat((torch.randn(5, 33) * 1e37, torch.randn(5, 33) * 1e-42)),
    "constant": lambda: torch.full((4, 33), 3.7),
    "threads": lambda: torch.randn(5, 40001),
}
ROWS = SHAPES | {"one behind the row": lambda: torch.randn(4, 63)}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
        assert a.untyped_storage().nbytes() == a.numel() * a.itemsize


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
def test_the_kernels_were_built() -> None:
    assert native.reads(torch.float32, torch.bfloat16)
    assert not native.reads(torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", SHAPES)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group", [64, 17, 256])
def test_affine(bits: int, group: int, given: str, dtype: torch.dtype) -> None:
    x = SHAPES[given]().to(dtype)
    for stats in (torch.float32, torch.bfloat16):
        packed = affine_pack(x, None, None, bits, group, stats)
        equal(packed, affine_pack_plain(x, None, None, bits, group, stats))
        back = (*packed, list(x.shape), bits, group, dtype)
        equal((affine_unpack(*back),), (affine_unpack_plain(*back),))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "given", ["tokens", "odd", "empty", "permuted", "channels", "threads", "one behind the row"]
)
def test_standardised_rows(given: str, dtype: torch.dtype) -> None:
    x = (2 + 3 * ROWS[given]()).to(dtype)
    wide = x if dtype == torch.float64 else x.float()
    mean = wide.mean(-1, keepdim=True)
    rstd = 1 / (wide - mean).norm(dim=-1, keepdim=True)
    packed = affine_pack(x, mean, rstd, 4, 64, torch.bfloat16)
    equal(packed, affine_pack_plain(x, mean, rstd, 4, 64, torch.bfloat16))
    # The formula on its own: the same codes as of a tensor that is standardised already.
    ready = ((wide - mean) * rstd).contiguous()
    equal(packed, affine_pack_plain(ready, None, None, 4, 64, torch.bfloat16))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("group", "place"), [(64, 5), (50, 49)])
def test_a_group_with_what_is_not_finite_is_not_finite(group: int, place: int, bad: float) -> None:
    x = torch.randn(3, group)
    x[1, place] = bad
    for bits in (4, 8):
        packed = affine_pack(x, None, None, bits, group, torch.bfloat16)
        again = affine_unpack(*packed, [3, group], bits, group, torch.float32)
        assert not again[1, place].isfinite() and again[::2].isfinite().all()
        plain = affine_pack_plain(x, None, None, bits, group, torch.bfloat16)
        equal(packed[2:], plain[2:])


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_what_is_read_in_pieces_is_packed_as_one(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE", 64)
    x = torch.randn(9, 200).mT
    given = (None, None, bits, 64, torch.bfloat16)
    equal(affine_pack(x, *given), affine_pack(x.contiguous(), *given))
    table = ([-1.0, 0.0, 0.5], [1, 0, 1, 0], bits)
    equal((threshold_pack(x, *table),), (threshold_pack(x.contiguous(), *table),))


def cuts(levels: tuple[float, ...]) -> tuple[float, ...]:
    return tuple((a + b) / 2 for a, b in zip(levels, levels[1:], strict=False))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("name", LEVELS)
def test_a_slope_is_coded_as_its_nearest_level(name: str, bits: int) -> None:
    """The law of threshold codes: edges on x give the code of the slope, computed in float64."""
    levels, slope = LEVELS[name][1][bits], getattr(slopes, name)
    edges, codes = threshold_table(slope, cuts(levels))
    at = torch.tensor(edges).float()
    around = (at.nextafter(at + 1), at.nextafter(at - 1), at)
    x = torch.cat((torch.randn(5000) * 2, torch.linspace(-90, 90, 999), *around))
    packed = threshold_pack(x, list(edges), list(codes), bits)
    code = unpack_bits(split(packed, bits, len(x)), bits, len(x))
    distance = (slope(x.double())[:, None] - torch.tensor(levels, dtype=torch.float64)).abs()
    assert torch.equal(code.long(), distance.argmin(1))


def test_relu_and_relu6_are_exact_at_their_corners() -> None:
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-45, 5.9999995, 6.0, 6.0000005, 1e30, -1e30])
    for slope in (slopes.relu, slopes.relu6):
        edges, codes = threshold_table(slope, (0.0,))
        packed = threshold_pack(x, list(edges), list(codes), 1)
        assert torch.equal(threshold_unpack(packed, [0.0, 1.0], [9], 1, x.dtype), slope(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", SHAPES)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_threshold_table(bits: int, given: str, dtype: torch.dtype) -> None:
    x, levels = SHAPES[given]().to(dtype), list(LEVELS["gelu"][1][bits])
    edges, codes = map(list, threshold_table(slopes.gelu, cuts(tuple(levels))))
    packed = threshold_pack(x, edges, codes, bits)
    equal((packed,), (threshold_pack_plain(x, edges, codes, bits),))
    assert packed.numel() == packed_bytes(x.numel(), bits)
    back = (packed, levels, list(x.shape), bits, dtype)
    equal((threshold_unpack(*back),), (threshold_unpack_plain(*back),))
    dy = torch.randn_like(x)
    equal((threshold_scale(dy, packed, levels, bits),), (dy * threshold_unpack_plain(*back),))
    scaled = threshold_scale_plain(dy, packed, levels, bits)
    assert torch.equal(threshold_scale(dy, packed, levels, bits), scaled)


def test_the_cells_of_edges_are_the_search() -> None:
    """What the plain definition looks up is what torch.bucketize searches."""
    on_an_edge = torch.tensor([0.5, -1.0, 0.0, 2.0, -2.0, 7.0])
    bad = torch.tensor([math.inf, -math.inf, math.nan])
    x = torch.cat((torch.randn(3000) * 3, on_an_edge, bad))
    for edges in ([0.5], [-1.0, 0.0, 2.0], [-2.0, -1.9999, 0.3, 0.30001, 7.0]):
        codes = [0, 3, 1, 2, 7, 5][: len(edges) + 1]
        packed = threshold_pack_plain(x, edges, codes, 4)
        below = torch.bucketize(x.nan_to_num(-math.inf), torch.tensor(edges))
        code = unpack_bits(split(packed, 4, len(x)), 4, len(x))
        assert torch.equal(code.long(), torch.tensor(codes)[below])
        equal((threshold_pack(x, edges, codes, 4),), (packed,))


def test_torch_takes_them_as_ops_of_its_own() -> None:
    x, rows = torch.randn(4, 50), torch.rand(4, 1)
    for bits, shift in ((4, None), (6, rows)):
        packed = affine_pack(x, shift, shift, bits, 64, torch.bfloat16)
        torch.library.opcheck(affine_pack, (x, shift, shift, bits, 64, torch.bfloat16))
        torch.library.opcheck(affine_unpack, (*packed, [4, 50], bits, 64, torch.float32))
    codes = threshold_pack(x, [0.0, 1.0], [0, 1, 2], 2)
    torch.library.opcheck(threshold_pack, (x, [0.0, 1.0], [0, 1, 2], 2))
    torch.library.opcheck(threshold_unpack, (codes, [0.0, 1.0, 2.0], [4, 50], 2, torch.float32))
    torch.library.opcheck(threshold_scale, (x, codes, [0.0, 1.0, 2.0], 2))


@pytest.mark.parametrize("codec", [Codebook.of("gelu"), Sign()])
def test_compiled_without_a_break(codec: Codebook | Sign) -> None:
    def step(x: Tensor) -> Tensor:
        gelu = torch.nn.functional.gelu
        return saved(UNARY, codec, x, call=gelu, slope=slopes.gelu)

    x, dy = torch.randn(4, 33, requires_grad=True), torch.randn(4, 33)
    plain = torch.autograd.grad(step(x), x, dy)
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    equal(torch.autograd.grad(compiled(x), x, dy), plain)


def test_the_first_use_may_be_on_fake_tensors() -> None:
    _threshold_table.cache_clear()
    with FakeTensorMode():
        (packed,) = Codebook.of("gelu").pack(
            Residue(torch.randn(3, 64), slopes.gelu, pointwise=True)
        )
    assert packed.shape == (96,)

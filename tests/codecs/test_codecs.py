"""Every codec keeps the bytes it declares and errs no more than it declares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kept import stored_bytes
from torch import Tensor

from lowtide.codecs import CASES, CODECS
from lowtide.codecs.affine import Affine
from lowtide.codecs.base import Residue
from lowtide.codecs.codebook import Codebook
from lowtide.codecs.exact import Exact
from lowtide.errors import InputError
from lowtide.kernels.bits import pack_bits, packed_bytes, split, unpack_bits
from lowtide.kernels.slices import SLICE

INPUTS: dict[str, Callable[[], Tensor]] = {
    "tokens": lambda: torch.randn(3, 10, 32),
    "odd": lambda: torch.randn(3, 7, 13),
    "one": lambda: torch.randn(1),
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 5),
    "images": lambda: torch.randn(2, 3, 7, 7),
    "permuted": lambda: torch.randn(2, 9, 3, 8).permute(0, 2, 1, 3),
    "constant": lambda: torch.full((4, 33), 3.7),
    "zeros": lambda: torch.zeros(4, 33),
    "huge": lambda: torch.randn(5, 16) * 1e37,
    "tiny": lambda: torch.randn(5, 16) * 1e-42,
    "offset": lambda: 1000 + torch.randn(5, 64),
    "outlier": lambda: torch.cat((torch.randn(63), torch.tensor([1e4]))),
    "sliced": lambda: torch.randn(3, SLICE // 2 + 24),
}


def test_every_codec_has_cases_or_laws_of_its_own() -> None:
    tested = {type(codec) for codec in CASES.values()}
    for codec in set(CODECS.values()) - tested:
        file = codec.__module__.rpartition(".")[2]
        assert Path(__file__).with_name(f"test_{file}.py").exists(), codec


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("name", CASES)
def test_bytes_and_bound(name: str, given: str, dtype: torch.dtype) -> None:
    codec, x = CASES[name], INPUTS[given]().to(dtype)
    packed = codec.pack(Residue(x))
    if name != "exact":
        assert stored_bytes(packed) == codec.nbytes(x.shape, x.dtype)
    again = codec.unpack(packed, x.shape, x.dtype)
    assert again.shape == x.shape and again.dtype == x.dtype
    # The bound is of the codec; what a low precision cannot represent comes on top.
    coarse = torch.finfo(dtype).eps * again.double().abs() if dtype == torch.bfloat16 else 0
    wide = x if dtype == torch.float64 else x.float()
    error = (again.double() - x.double()).abs() - coarse
    assert (error <= codec.bound(wide).double() * (1 + 1e-6)).all()


def test_the_affine_bound_is_tight() -> None:
    """A bound that is never nearly met would not catch a codec that got twice as bad."""
    x = torch.randn(50, 64)
    for codec, share in ((Affine(4, 64), 0.97), (Affine(4, 64, "floor"), 0.97)):
        again = codec.unpack(codec.pack(Residue(x)), x.shape, x.dtype)
        assert ((again - x).abs() / codec.bound(x)).max() > share


@pytest.mark.parametrize("group", ["row", "tensor", 16])
@pytest.mark.parametrize("stats", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rounding_down_keeps_a_maximum(
    dtype: torch.dtype, stats: torch.dtype | None, group: int | str
) -> None:
    """It is the last code exactly; just below it, it would lose a whole step."""
    x = (3 * torch.randn(300, 48) + 5).softmax(1).to(dtype)
    for bits in (1, 2, 4, 8):
        codec = Affine(bits, group, "floor", stats)
        low, step, codes = codec.pack(Residue(x))
        size = {"row": 48, "tensor": x.numel()}.get(group, group)
        flat = unpack_bits(split(codes, bits, x.numel()), bits, x.numel())
        q, groups = flat.view(-1, size), x.view(-1, size)
        top = groups == groups.amax(1, keepdim=True)
        assert (q[top] == 2**bits - 1).all() and q.int().max() < 2**bits
        assert (q[groups == groups.amin(1, keepdim=True)] == 0).all()
        exact = (groups.double() - low[:, None].double()) / step[:, None].double()
        assert (q[~top] <= exact[~top] + 1e-5 * 2**bits).all()


def test_short_statistics_cost_no_quality() -> None:
    x = torch.randn(200, 64)
    errors = []
    for stats in (None, torch.bfloat16):
        codec = Affine(4, 64, stats=stats)
        again = codec.unpack(codec.pack(Residue(x)), x.shape, x.dtype)
        errors.append((again - x).square().mean().sqrt())
    assert errors[1] < 1.03 * errors[0]


def test_constant_groups_are_exact() -> None:
    x = torch.full((3, 40), 0.1234567)
    again = Affine(4, 8).unpack(Affine(4, 8).pack(Residue(x)), x.shape, x.dtype)
    assert torch.equal(again, x)


def test_stochastic_rounding_has_the_right_mean() -> None:
    x, codec = torch.randn(1, 64), Affine(2, 64, "stochastic")
    drawn = [codec.unpack(codec.pack(Residue(x)), x.shape, x.dtype) for _ in range(2000)]
    mean = torch.stack(drawn).mean(0)
    step = (x.max() - x.min()) / 3
    # Each draw is off by less than a step, so the mean of 2000 is off by less than step / 10.
    assert (mean - x).abs().max() < step / 10
    nearest = Affine(2, 64)
    once = nearest.unpack(nearest.pack(Residue(x)), x.shape, x.dtype)
    assert (once - x).abs().max() > step / 4


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("affine")])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_never_hidden(name: str, bad: float) -> None:
    x = torch.randn(4, 16)
    x[1, 3] = bad
    again = CASES[name].unpack(CASES[name].pack(Residue(x)), x.shape, x.dtype)
    assert not again[1, 3].isfinite()


def test_exact_copies_a_small_part_and_no_more() -> None:
    """The class token of every image must not hold all the tokens."""
    x = torch.randn(4, 50, 6)
    for part, bytes_kept in ((x[:, 0], 4 * 24), (x[:, :25], 4 * 1200), (x, 4 * 1200)):
        packed = Exact().pack(Residue(part))
        assert torch.equal(packed[0], part)
        assert stored_bytes(packed) == bytes_kept


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_bits_round_trip(bits: int, count: int) -> None:
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert stored_bytes(packed) == packed_bytes(count, bits)
    assert torch.equal(unpack_bits(packed, bits, count), codes)


def test_slices_hold_the_whole_residue() -> None:
    x = torch.randn(5, 3, SLICE // 8)
    pieces = list(Residue(x).slices(8))
    assert len(pieces) > 1 and torch.equal(torch.cat(pieces), x.flatten())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Affine(9),
        lambda: Affine(4, 0),
        lambda: Affine(4, 64, "up"),
        lambda: Codebook((1.0, 0.0)),
        lambda: Codebook.of("gelu", 5),
        lambda: Codebook.of("gulu"),
    ],
)
def test_wrong_codecs_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_part_of_what_is_kept_reads_as_it_does_among_all(bits: int) -> None:
    codec, shape = Affine(bits, 16), torch.Size((2, 3, 32))
    packed = codec.pack(Residue(torch.randn(shape)))
    whole = codec.unpack(packed, shape, torch.float32).flatten()
    part = codec.part(packed, 32, 96)
    assert part is not None
    assert torch.equal(codec.unpack(part, torch.Size((64,)), torch.float32), whole[32:96])
    assert codec.part(packed, 8, 96) is None and codec.part(packed, 32, 100) is None


def test_codes_in_several_fields_have_no_parts() -> None:
    for codec in (Affine(3, 16), Affine(8, "row")):
        assert codec.part(codec.pack(Residue(torch.randn(4, 16))), 0, 16) is None

"""Ops x codecs: the formula, the forward, the bytes, and what is not kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kept import bytes_besides, keeping
from torch import Tensor, nn

from lowtide.codecs.affine import Affine
from lowtide.codecs.base import Codec, Residue
from lowtide.codecs.codebook import Codebook
from lowtide.codecs.exact import Exact
from lowtide.codecs.sign import Sign
from lowtide.codecs.sine import Sine
from lowtide.memory.compress import compress
from lowtide.memory.policy import Policy
from lowtide.ops import CASES, NAMES, OPS
from lowtide.ops.case import Case
from lowtide.ops.saved import Needs, saved
from lowtide.ops.unary import SLOPES

CODECS: dict[str, Codec] = {
    "exact": Exact(),
    "affine4": Affine(4, 8),
    "affine4_row": Affine(4, "row"),
    "affine8": Affine(8, 16, stats=torch.bfloat16),
    "codebook": Codebook.of("gelu"),
    "sign": Sign(),
    "sine": Sine(),
}


def tensors(case: Case, needs: Needs | None = None, dtype: torch.dtype = torch.float64) -> list:
    made = [None if s is None else torch.randn(s, dtype=dtype) for s in case.shapes]
    for t, need in zip(made, needs or (True,) * len(made), strict=True):
        if t is not None:
            t.requires_grad_(need)
    return made


def options(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Options, with tensors of their own: statistics move."""

    def own(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype, copy=True)
        return tuple(map(own, value)) if type(value) is tuple else value

    return {name: own(value) for name, value in case.options.items()}


def run(case: Case, how: Codec, *given: Tensor | None) -> Tensor:
    """The op by a codec; like `plain`, from the same noise every time."""
    torch.manual_seed(3)
    dtype = next(t.dtype for t in given if t is not None)
    return saved(case.op, how, *given, **options(case, dtype))


def plain(case: Case, *given: Tensor | None) -> Tensor:
    torch.manual_seed(3)
    return case.plain(*given)


def subsets(case: Case) -> Iterator[Needs]:
    choices = [(False,) if s is None else (True, False) for s in case.shapes]
    return (needs for needs in itertools.product(*choices) if any(needs))


class Calls(nn.Module):
    """A model that makes one call, with a child so that it is compressed as models are."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call, self.child = call, nn.Identity()

    def forward(self, *given: Tensor | None) -> Tensor:
        torch.manual_seed(3)
        return self.call(*given)


def test_every_op_is_tested() -> None:
    """But those whose weight is bytes, which tests of frozen weights hold to the same formulas."""
    tested = {name: op for name, op in OPS.items() if not name.startswith("FROZEN_")}
    assert {id(case.op) for case in CASES.values()} == {id(op) for op in tested.values()}


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_with_the_exact_codec(name: str) -> None:
    """Of every argument; torch's gradients, below, are those of each choice of them."""
    case = CASES[name]
    given = tensors(case)
    needs = tuple(t is not None for t in given)

    def of(*wanted: Tensor) -> Tensor:
        rest = iter(wanted)
        return run(case, Exact(), *(next(rest) if need else None for need in needs))

    assert torch.autograd.gradcheck(of, [t for t in given if t is not None])


@pytest.mark.parametrize("name", CASES)
def test_exact_gradients_are_torchs(name: str) -> None:
    case = CASES[name]
    for needs in subsets(case):
        given = tensors(case, needs)
        wanted = [t for t, need in zip(given, needs, strict=True) if need]
        y = run(case, Exact(), *given)
        dy = torch.randn_like(y)
        ours = torch.autograd.grad(y, wanted, dy)
        theirs = torch.autograd.grad(plain(case, *given), wanted, dy)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 12, 40])
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if "attention" in n])
def test_gradients_in_chunks_are_those_of_the_whole(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row, of a few rows or of a few heads, whatever wants a gradient."""
    case = CASES[name]
    for needs in subsets(case):
        given = tensors(case, needs)
        wanted = [t for t, need in zip(given, needs, strict=True) if need]
        y = run(case, Exact(), *given)
        dy = torch.randn_like(y)
        whole = torch.autograd.grad(y, wanted, dy, retain_graph=True)
        with monkeypatch.context() as patch:
            patch.setattr("lowtide.ops.attention_chunks.CHUNK", chunk)
            cut = torch.autograd.grad(y, wanted, dy)
        for a, b in zip(cut, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", CASES)
def test_forward_is_torchs_bit_for_bit(name: str, codec: str) -> None:
    case = CASES[name]
    given = tensors(case, dtype=torch.float32)
    assert torch.equal(run(case, CODECS[codec], *given), plain(case, *given))


@pytest.mark.parametrize("name", CASES)
def test_a_model_that_makes_the_call_is_answered(name: str) -> None:
    case = CASES[name]
    given = tensors(case)
    wanted = [t for t in given if t is not None]
    y = compress(Calls(case.plain), Policy({name: Exact() for name in NAMES}))(*given)
    assert "_Saved" in type(y.grad_fn).__name__
    theirs = plain(case, *given)
    assert torch.equal(y, theirs)
    dy = torch.randn_like(y)
    pairs = (torch.autograd.grad(z, wanted, dy) for z in (y, theirs))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", CASES)
def test_only_the_declared_bytes_are_kept(name: str, codec: str) -> None:
    """What the codec declares for the residues that are asked for, and a few statistics."""
    case, how = CASES[name], CODECS[codec]
    for needs in subsets(case):
        given = tensors(case, needs, torch.float32)
        with keeping() as kept:
            y = run(case, how, *given)
        declared = sum(how.nbytes(torch.Size(s), torch.float32) for s in case.kept(needs))
        if codec == "exact" and not case.made:
            # Residues that are arguments: kept by reference. What attention makes itself is P.
            apart = case.op is OPS["ATTENTION_TAKEN_APART"]
            declared = 4 * torch.Size(case.kept(needs)[3]).numel() if apart else 0
        assert bytes_besides(kept, given) == declared + case.beside(needs)
        if codec != "exact":
            others = [i for i, t in enumerate(given) if t is not None and any(t is u for u in kept)]
            assert others == list(case.as_is(needs))
        del y


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("gelu", "codebook"),
        *itertools.product((n for n in CASES if CASES[n].linear), ["affine4", "affine8"]),
    ],
)
def test_gradient_error_is_bounded_by_the_codec(name: str, codec: str) -> None:
    """Where the gradient is linear in the residue, |error| <= backward(bound, |dy|)."""
    case, how = CASES[name], CODECS[codec]
    given = tensors(case)
    needs = tuple(t is not None for t in given)
    wanted = [t for t in given if t is not None]
    torch.manual_seed(3)
    forward = case.op.forward(needs, *given, **options(case))
    dy = torch.randn_like(forward.y)

    def backward(residues: Iterator[Tensor], dy: Tensor) -> list[Tensor]:
        given = needs, tuple(residues), forward.extras, dy
        gradients = case.op.backward(*given, **options(case))
        return [g for g, need in zip(gradients, needs, strict=True) if need]

    residues = [r.of(r.source).detach() for r in forward.residues]
    exact = backward(iter(residues), dy)
    most = backward((how.bound(r) for r in residues), dy.abs())
    none = backward((torch.zeros_like(r) for r in residues), dy)
    rough = torch.autograd.grad(run(case, how, *given), wanted, dy)
    judged = 0
    for a, b, limit, apart in zip(rough, exact, most, none, strict=True):
        if torch.equal(apart, b):
            torch.testing.assert_close(a, b)  # it reads no residue
        else:
            assert ((a - b).abs() <= limit + 1e-6).all()
            judged += 1
    assert judged


@pytest.mark.parametrize("name", ["layer_norm", "softmax", "attention", "attention_apart"])
def test_the_backward_sees_what_the_codec_gives(name: str) -> None:
    """Where it is not linear, the gradient is torch's formula at the unpacked residues."""
    case, how = CASES[name], Affine(4, "row")
    given = tensors(case)
    needs = tuple(t is not None for t in given)
    wanted = [t for t in given if t is not None]
    forward = case.op.forward(needs, *given, **options(case))
    dy = torch.randn_like(forward.y)
    ours = torch.autograd.grad(run(case, how, *given), wanted, dy)

    def hat(residue: Residue) -> Tensor:
        packed = how.pack(residue)
        return how.unpack(packed, residue.source.shape, residue.source.dtype)

    hats = [hat(r) for r in forward.residues]
    if name == "softmax":
        theirs = [hats[0] * (dy - (dy * hats[0]).sum(-1, keepdim=True))]
    elif name == "layer_norm":
        g, rstd = dy * given[1], forward.extras[0]
        along = {"dim": -1, "keepdim": True}
        theirs = [rstd * (g - g.mean(**along) - hats[0] * (g * hats[0]).mean(**along))]
        theirs += [(dy * hats[0]).sum((0, 1)), dy.sum((0, 1))]
    else:
        q, k, v = (h.requires_grad_() for h in hats[:3])
        p = torch.softmax(0.7 * q @ k.mT, -1) if name == "attention" else hats[3]
        dp = dy @ v.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        theirs = [0.7 * ds @ k, 0.7 * ds.mT @ q, p.mT @ dy]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["max_pool", "max_pool_even"])
def test_four_bits_lose_nothing_of_a_maximum(name: str) -> None:
    case, how = CASES[name], Affine(4, "tensor")
    for _ in range(5):
        x = torch.randn(case.shapes[0] or (), requires_grad=True)
        y = run(case, how, x)
        dy = torch.randn_like(y)
        ours, theirs = (torch.autograd.grad(t, x, dy)[0] for t in (y, case.plain(x)))
        assert torch.equal(ours, theirs)


def test_relu6_is_one_bit() -> None:
    x = 5 * torch.randn(8, 8)
    x.requires_grad_()
    y = saved(OPS["UNARY"], Sign(), x, call=F.relu6, slope=SLOPES["relu6"])
    dy = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(t, x, dy)[0] for t in (y, F.relu6(x)))
    assert torch.equal(ours, theirs)


def test_one_tensor_is_kept_once() -> None:
    """Two adapters read the same tokens; a softmax and the product behind it share P."""
    x = torch.randn(2, 3, 64)
    a, b = (torch.randn(4, 64, requires_grad=True) for _ in range(2))
    with keeping() as kept:
        saved(OPS["LINEAR"], Affine(8), x, a, None)
        saved(OPS["LINEAR"], Affine(8), x, b, None)
    assert bytes_besides(kept, [x, a, b]) == Affine(8).nbytes(x.shape, x.dtype)
    x.add_(1)
    with keeping() as again:
        saved(OPS["LINEAR"], Affine(8), x, a, None)
    assert bytes_besides(again, [*kept, x, a]) > 0, "a tensor that was written to is another one"

"""Ops x codecs: the formula, the forward, the bytes, and what is not kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lowtide.codecs.affine import Affine
from lowtide.codecs.base import Codec, Residue
from lowtide.codecs.codebook import Codebook
from lowtide.codecs.exact import Exact
from lowtide.codecs.sign import Sign
from lowtide.codecs.sine import Sine
from lowtide.ops import OPS
from lowtide.ops.saved import saved
from lowtide.ops.unary import SLOPES


@dataclass(frozen=True)
class Case:
    """An op with arguments, and torch's own function of the same arguments.

    `kept` says, for the arguments that want a gradient, the shapes of the residues; `beside` the
    bytes of what is kept besides; `as_is` which argument is kept as it is, if any.
    """

    op: str
    shapes: tuple[tuple[int, ...] | None, ...]
    plain: Callable[..., Tensor]
    kept: Callable[[tuple[bool, ...]], list[tuple[int, ...]]]
    options: dict[str, Any] = field(default_factory=dict)
    beside: Callable[[tuple[bool, ...]], int] = lambda n: 0
    as_is: int | None = None


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "relu": F.relu,
    "relu6": lambda x: F.relu6(3 * x),
}
SDPA = F.scaled_dot_product_attention
QKV, MASK = (2, 3, 5, 4), (2, 3, 5, 5)


def attention(
    causal: bool = False, mask: tuple[int, ...] | None = None, apart: bool = False
) -> Case:
    def plain(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None) -> Tensor:
        return SDPA(q, k, v, m, is_causal=causal, scale=0.7)

    op = "ATTENTION_TAKEN_APART" if apart else "ATTENTION"
    residues = [QKV] * 3 + [MASK] * apart
    options = {"scale": 0.7, "causal": causal}
    kept = lambda n: residues if any(n) else []  # noqa: E731
    return Case(op, (QKV, QKV, QKV, mask), plain, kept, options, as_is=None if apart else 3)


def batch_norm(training: bool, shape: tuple[int, ...] = (3, 4, 6, 5)) -> Case:
    mean, var = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5

    def plain(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        m, v = mean.to(x.dtype, copy=True), var.to(x.dtype, copy=True)
        return F.batch_norm(x, m, v, w, b, training, 0.2, 1e-3)

    return Case(
        "BATCH_NORM",
        (shape, (4,), (4,)),
        plain,
        lambda n: [shape] * (n[1] or training and n[0]),
        {"running": (mean, var), "training": training, "momentum": 0.2, "eps": 1e-3},
        # rstd for everybody but a lone bias; mean where x^ is made; both if nothing is asked of x.
        lambda n: 16 + 16 * (n[1] or training and n[0]),
        as_is=1,
    )


def max_pool(*window: list[int], ceil: bool = False) -> Case:
    def plain(x: Tensor) -> Tensor:
        return F.max_pool2d(x, *window, ceil)

    out = tuple(plain(torch.zeros(2, 3, 9, 7)).shape)
    return Case(
        "MAX_POOL",
        ((2, 3, 9, 7),),
        plain,
        lambda n: [out],
        {"window": window, "ceil": ceil},
        lambda n: 4,
    )


CASES: dict[str, Case] = {
    **{
        name: Case(
            "UNARY",
            ((3, 7, 5),),
            function,
            lambda n: [(3, 7, 5)],
            {"call": function, "slope": SLOPES[name]},
        )
        for name, function in FUNCTIONS.items()
        if name != "relu6"
    },
    "layer_norm": Case(
        "LAYER_NORM",
        ((3, 7, 5), (5,), (5,)),
        lambda x, w, b: F.layer_norm(x, (5,), w, b, 1e-6),
        lambda n: [(3, 7, 5)] if n[0] or n[1] else [],
        {"eps": 1e-6},
        lambda n: 4 * 21 * n[0],
        as_is=1,
    ),
    "layer_norm_plain": Case(
        "LAYER_NORM",
        ((3, 7, 5), None, None),
        lambda x, w, b: F.layer_norm(x, (5,), w, b, 1e-6),
        lambda n: [(3, 7, 5)],
        {"eps": 1e-6},
        lambda n: 4 * 21,
    ),
    "softmax": Case("SOFTMAX", ((3, 7, 5),), lambda x: torch.softmax(x, -1), lambda n: [(3, 7, 5)]),
    "matmul": Case(
        "MATMUL",
        ((2, 3, 4), (2, 4, 5)),
        torch.matmul,
        lambda n: [(2, 4, 5)] * n[0] + [(2, 3, 4)] * n[1],
    ),
    "linear": Case(
        "LINEAR",
        ((2, 3, 4), (5, 4), (5,)),
        F.linear,
        lambda n: [(2, 3, 4)] * n[1],
        as_is=1,
    ),
    "linear_plain": Case(
        "LINEAR", ((2, 3, 4), (5, 4), None), F.linear, lambda n: [(2, 3, 4)] * n[1], as_is=1
    ),
    "mul": Case(
        "MUL",
        ((3, 7, 5), (3, 7, 5)),
        torch.mul,
        lambda n: [(3, 7, 5)] * sum(n),
        {"shapes": (torch.Size((3, 7, 5)), torch.Size((3, 7, 5)))},
    ),
    "mul_scale": Case(
        "MUL",
        ((3, 7, 5), (5,)),
        torch.mul,
        lambda n: [(3, 7, 5)] * n[1],
        {"shapes": (torch.Size((3, 7, 5)), torch.Size((5,)))},
        as_is=1,
    ),
    "mul_scale_first": Case(
        "MUL",
        ((4, 1, 1), (2, 4, 3, 3)),
        torch.mul,
        lambda n: [(2, 4, 3, 3)] * n[0],
        {"shapes": (torch.Size((4, 1, 1)), torch.Size((2, 4, 3, 3)))},
        as_is=0,
    ),
    "mean_pool": Case(
        "MEAN_POOL",
        ((2, 3, 7, 6),),
        lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
        lambda n: [],
        {"size": (3, 2)},
        lambda n: 4,
    ),
    "max_pool": max_pool([3, 2], [2, 1], [1, 0], [1, 2]),
    "max_pool_even": max_pool([2, 2], [2, 2], [0, 0], [1, 1], ceil=True),
    "batch_norm": batch_norm(training=True),
    "batch_norm_frozen": batch_norm(training=False),
    "batch_norm_frozen_1d": batch_norm(training=False, shape=(5, 4)),
    "conv": Case(
        "CONV",
        ((2, 4, 6, 6), (6, 2, 3, 3), (6,)),
        lambda x, w, b: F.conv2d(x, w, b, 2, 1, 1, 2),
        lambda n: [(2, 4, 6, 6)] * n[1],
        {"shape": torch.Size((2, 4, 6, 6)), "pairs": ([2, 2], [1, 1], [1, 1]), "groups": 2},
        as_is=1,
    ),
    "attention": attention(),
    "attention_causal": attention(causal=True),
    "attention_bias": attention(mask=(1, 3, 5, 5)),
    "attention_mask": attention(mask=MASK),
    "attention_apart": attention(apart=True),
    "attention_apart_bias": attention(mask=(1, 3, 5, 5), apart=True),
}
CODECS: dict[str, Codec] = {
    "exact": Exact(),
    "affine4": Affine(4, 8),
    "affine4_row": Affine(4, "row"),
    "affine8": Affine(8, 16, stats=torch.bfloat16),
    "codebook": Codebook.of("gelu"),
    "sign": Sign(),
    "sine": Sine(),
}


def tensors(case: Case, needs: tuple[bool, ...] | None = None, dtype=torch.float64) -> list:
    made = [None if s is None else torch.randn(s, dtype=dtype) for s in case.shapes]
    for t, need in zip(made, needs or (True,) * len(made), strict=True):
        if t is not None:
            t.requires_grad_(need)
    return made


def options(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Options, with statistics of their own: they move."""
    running = tuple(t.to(dtype, copy=True) for t in case.options.get("running", ()))
    return {**case.options, **({"running": running} if running else {})}


def subsets(case: Case) -> Iterator[tuple[bool, ...]]:
    choices = [(False,) if s is None else (True, False) for s in case.shapes]
    return (needs for needs in itertools.product(*choices) if any(needs))


@contextmanager
def keeping() -> Iterator[list[Tensor]]:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda t: t):
        yield kept


def bytes_besides(kept: list[Tensor], arguments: list[Tensor | None]) -> int:
    known = {id(t.untyped_storage()) for t in arguments if t is not None}
    storages = {id(s): s.nbytes() for t in kept if id(s := t.untyped_storage()) not in known}
    return sum(storages.values())


def test_every_op_is_tested() -> None:
    assert {case.op for case in CASES.values()} | {"DROPOUT"} == set(OPS)
    assert set(FUNCTIONS) == set(SLOPES)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_with_the_exact_codec(name: str) -> None:
    case = CASES[name]
    for needs in subsets(case):
        given = tensors(case, needs)

        def run(*wanted: Tensor, given: list = given, needs: tuple[bool, ...] = needs) -> Tensor:
            rest = iter(wanted)
            both = [next(rest) if n else g for n, g in zip(needs, given, strict=True)]
            return saved(OPS[case.op], Exact(), *both, **options(case))

        wanted = [t for t, need in zip(given, needs, strict=True) if need]
        assert torch.autograd.gradcheck(run, wanted)


@pytest.mark.parametrize("name", CASES)
def test_exact_gradients_are_torchs(name: str) -> None:
    case = CASES[name]
    for needs in subsets(case):
        given = tensors(case, needs)
        wanted = [t for t, need in zip(given, needs, strict=True) if need]
        y = saved(OPS[case.op], Exact(), *given, **options(case))
        dy = torch.randn_like(y)
        ours = torch.autograd.grad(y, wanted, dy)
        theirs = torch.autograd.grad(case.plain(*given), wanted, dy)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", CASES)
def test_forward_is_torchs_bit_for_bit(name: str, codec: str) -> None:
    case = CASES[name]
    given = tensors(case, dtype=torch.float32)
    y = saved(OPS[case.op], CODECS[codec], *given, **options(case, torch.float32))
    assert torch.equal(y, case.plain(*given))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", CASES)
def test_only_the_declared_bytes_are_kept(name: str, codec: str) -> None:
    """What the codec declares for the residues that are asked for, and a few statistics."""
    case, how = CASES[name], CODECS[codec]
    for needs in subsets(case):
        given = tensors(case, needs, torch.float32)
        with keeping() as kept:
            y = saved(OPS[case.op], how, *given, **options(case, torch.float32))
        declared = sum(how.nbytes(torch.Size(s), torch.float32) for s in case.kept(needs))
        if codec == "exact" and case.op not in ("UNARY", "LAYER_NORM", "SOFTMAX", "MAX_POOL"):
            # Residues that are arguments: kept by reference.
            declared = 4 * 150 if case.op == "ATTENTION_TAKEN_APART" else 0
        assert bytes_besides(kept, given) == declared + case.beside(needs)
        if codec != "exact":
            # Of the arguments only what the other gradients need as it is: weights and masks.
            others = [i for i, t in enumerate(given) if t is not None and any(t is u for u in kept)]
            assert others in ([], [case.as_is])
            if case.op in ("LINEAR", "LAYER_NORM", "BATCH_NORM") and not needs[0]:
                assert not others
        del y


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("gelu", "codebook"),
        *itertools.product(
            ["gelu", "silu", "matmul", "linear", "conv", "mul", "mul_scale"],
            ["affine4", "affine8"],
        ),
    ],
)
def test_gradient_error_is_bounded_by_the_codec(name: str, codec: str) -> None:
    """Where the gradient is linear in the residue, |error| <= backward(bound, |dy|)."""
    case, how = CASES[name], CODECS[codec]
    given = tensors(case)
    needs = (True,) * len(given)
    forward = OPS[case.op].forward(needs, *given, **options(case))
    dy = torch.randn_like(forward.y)
    exact = OPS[case.op].backward(
        needs, tuple(r.of(r.source) for r in forward.residues), forward.extras, dy, **options(case)
    )
    y = saved(OPS[case.op], how, *given, **options(case))
    rough = torch.autograd.grad(y, given, dy)
    bounds = tuple(how.bound(r.of(r.source).detach()) for r in forward.residues)
    most = OPS[case.op].backward(needs, bounds, forward.extras, dy.abs(), **options(case))
    judged = 0
    for place, (a, b, limit) in enumerate(zip(rough, exact, most, strict=True)):
        if place != 1 and case.op in ("LINEAR", "CONV") or place == 0 and name == "mul_scale":
            torch.testing.assert_close(a, b)  # these read no residue
        else:
            assert ((a - b).abs() <= limit + 1e-6).all()
            assert (a - b).abs().max() > 0
            judged += 1
    assert judged


@pytest.mark.parametrize("name", ["layer_norm", "softmax", "attention", "attention_apart"])
def test_the_backward_sees_what_the_codec_gives(name: str) -> None:
    """Where it is not linear, the gradient is torch's formula at the unpacked residues."""
    case, how = CASES[name], Affine(4, "row")
    given = tensors(case)
    needs = tuple(t is not None for t in given)
    wanted = [t for t in given if t is not None]
    forward = OPS[case.op].forward(needs, *given, **options(case))
    dy = torch.randn_like(forward.y)
    ours = torch.autograd.grad(saved(OPS[case.op], how, *given, **options(case)), wanted, dy)

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


def test_dropout_keeps_its_mask_in_bits() -> None:
    x = torch.randn(40, 30, requires_grad=True)
    torch.manual_seed(3)
    with keeping() as kept:
        y = saved(OPS["DROPOUT"], Sign(), x, p=0.3)
    torch.manual_seed(3)
    plain = F.dropout(x, 0.3)
    assert torch.equal(y, plain)
    dy = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(t, x, dy)[0] for t in (y, plain))
    torch.testing.assert_close(ours, theirs)
    assert bytes_besides(kept, [x]) == 150


@pytest.mark.parametrize("name", ["max_pool", "max_pool_even"])
def test_four_bits_lose_nothing_of_a_maximum(name: str) -> None:
    case, how = CASES[name], Affine(4, "tensor")
    for _ in range(5):
        x = torch.randn(case.shapes[0] or (), requires_grad=True)
        y = saved(OPS["MAX_POOL"], how, x, **case.options)
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

"""Count what a training step computes, beside the bytes it keeps, and say how long that takes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .meter import Meter


@dataclass(frozen=True)
class Work:
    """An amount of work: operations and bytes moved.

    Attributes:
        flops: Operations of matrix products, convolutions and attention; a multiply-add is two.
        low_flops: Those of them on numbers of two bytes.
        bytes: Bytes that kernels read and write, each argument and result once.
        calls: Kernels.
    """

    flops: float = 0.0
    low_flops: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Work) -> Work:
        return self + other * -1

    def __mul__(self, times: float) -> Work:
        return Work(*(a * times for a in astuple(self)))


@dataclass(frozen=True)
class Machine:
    """The speed of a machine.

        seconds = (flops - low_flops) / flops_per_s + low_flops / low_flops_per_s
                  + bytes / bytes_per_s + calls call_s

    Attributes:
        flops_per_s: Operations per second, in float32.
        low_flops_per_s: The same on numbers of two bytes.
        bytes_per_s: Bytes read and written per second.
        call_s: Seconds per kernel that no size explains.
    """

    flops_per_s: float
    low_flops_per_s: float
    bytes_per_s: float
    call_s: float

    def __str__(self) -> str:
        return (
            f"flops / {self.flops_per_s:.3g}/s ({self.low_flops_per_s:.3g}/s on two bytes)"
            f" + bytes / {self.bytes_per_s:.3g}/s + kernels x {self.call_s:.1g} s"
        )

    def seconds(self, work: Work) -> float:
        """Predict how long some work takes.

        Args:
            work: The work.

        Returns:
            Seconds.
        """
        return self.arithmetic(work) + work.bytes / self.bytes_per_s + work.calls * self.call_s

    def arithmetic(self, work: Work) -> float:
        """Predict how long the products alone take.

        Args:
            work: The work.

        Returns:
            Seconds.
        """
        high = work.flops - work.low_flops
        return high / self.flops_per_s + work.low_flops / self.low_flops_per_s


class WorkMeter(Meter):
    """A meter that also counts work, on fake tensors as on real ones."""

    work = Work()
    """Everything counted so far."""

    def mark(self) -> Work:
        """Note where a step of a loop begins.

        Returns:
            Everything counted so far.
        """
        return self.work

    def repeat(self, times: int, since: object) -> None:
        """Count a step that a loop leaves out, being as the one before.

        Args:
            times: How many steps are left out.
            since: What `mark` gave where the one before began.
        """
        assert isinstance(since, Work)
        self.work += (self.work - since) * times

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if not _moves_no_bytes(func):
            self.work += _work(func, args, kwargs or {}, result)
        return result


@cache
def _moves_no_bytes(func: OpOverload) -> bool:
    """Whether a call moves no bytes: a view, or memory that is only reserved."""
    return func.namespace == "prim" or func.is_view or "empty" in func._schema.name


def _work(
    func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object], result: object
) -> Work:
    tensors = {id(t): t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)}
    flops = _flops(func, args, kwargs, result)
    moved = sum(t.numel() * t.itemsize for t in tensors.values())
    # A fused attention's statistics are wider than what it multiplies, which comes first.
    low = flops if flops and next(iter(tensors.values())).itemsize == 2 else 0
    return Work(flops, low, moved, 1)


PRODUCT = re.compile(
    r"(^|_)(\w*mm|\w*mv|v?dot|conv(olution)?(_?tbc|\dd)?|attention|attn|linear|lstm|gru|rnn)(?=_|$)"
)
"""Names of kernels that multiply, whose work must be known."""
VECTOR = re.compile(r"(mv|dot)_?$")
"""Products of a vector, which the guess counts right."""
POINTWISE = re.compile(r"upsample|_cell|_flatten_weight|reorder|prepack")
"""What bears such a name and does not multiply."""


def _flops(
    func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object], result: Any
) -> float:
    count = _count(func)
    if count is not None:
        return float(count(*args, **kwargs, out_val=result))
    name = func._schema.name.split("::")[1]
    if not PRODUCT.search(name) or POINTWISE.search(name):
        return 0
    given = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
    backward = any(name.startswith("grad") for name in given)
    q, k, v = (given.get(name) for name in ("query", "key", "value"))
    if isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor):
        return _attention(q.shape, k.shape, v.shape, backward)
    return _guess(func, args, kwargs, result, backward)


@cache
def _count(func: OpOverload) -> Callable[..., Any] | None:
    """Find torch's own count, of a kernel in place that of the other."""
    packet = func.overloadpacket
    if packet not in flop_registry and func._schema.name.endswith("_"):
        name = func._schema.name.split("::")[1].rstrip("_")
        packet = getattr(getattr(torch.ops, func.namespace), name, packet)
    count: Callable[..., object] | None = flop_registry.get(packet)
    return count


def _attention(q: torch.Size, k: torch.Size, v: torch.Size, backward: bool) -> float:
    """Count q k^T and P v; in backward q k^T once more, dP, dv, dq and dk."""
    pairs = q[:-1].numel() * k[-2]
    of_qk, of_v = 2 * pairs * q[-1], 2 * pairs * v[-1]
    return 3 * of_qk + 2 * of_v if backward else of_qk + of_v


def _guess(
    func: OpOverload,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    result: object,
    backward: bool,
) -> float:
    """Guess 2 sqrt(|a| |b| |y|) for y = a b, right for two dimensions or less; twice that back."""
    sizes = sorted(t.numel() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
    out = max((t.numel() for t in tree_leaves(result) if isinstance(t, Tensor)), default=0)
    three = sizes[-3:] if backward else [*sizes[-2:], out]
    if len(three) < 3:
        return 0
    if not VECTOR.search(func._schema.name):
        _warn_of_guess(func)
    return 2 * (1 + backward) * float(prod(three)) ** 0.5


@cache
def _warn_of_guess(func: object) -> None:
    warnings.warn(
        f"how much {func} computes is not known: its work is guessed from the sizes of its tensors,"
        " and so are the predicted seconds",
        stacklevel=2,
    )


MACHINES = {
    "cpu": Machine(90e9, 190e9, 11e9, 17e-6),
    "a100": Machine(19.5e12, 312e12, 1.55e12, 8e-6),
}
"""`cpu`: fitted to ViT-B/16 steps on one thread of an AMD EPYC, within 6 % of each.
`a100`: its data sheet, and an assumed launch time; not measured."""

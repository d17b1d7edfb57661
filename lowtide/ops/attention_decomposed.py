"""Attention with a relative position bias made of two vectors per query, as in SAM and MViTv2."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import vision_transformer_sam as sam
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..codecs.base import Residue
from . import attention_chunks
from .attention_chunks import ALIGNED, Chunk, attend, attention_backward, chunks
from .case import Case
from .multihead import opened
from .saved import Codecs, Forward, Needs, Op, Result, Tensors, saved

DEVICES = {"cpu"}
"""Where products of some rows are those of all rows to the last bit, so that the forward is cut."""


def _along(q: Tensor, rh: Tensor, rw: Tensor) -> tuple[Tensor, Tensor]:
    """Compute q R_h and q R_w, (B, N, K_h) and (B, N, K_w)."""
    grid = q.reshape(len(q), len(rh), len(rw), -1)
    rel_h = torch.einsum("bhwc,hkc->bhwk", grid, rh).flatten(1, 2)
    return rel_h, torch.einsum("bhwc,wkc->bhwk", grid, rw).flatten(1, 2)


def _forward(
    needs: Needs, q: Tensor, k: Tensor, v: Tensor, rh: Tensor, rw: Tensor, *, scale: float
) -> Forward:
    rel_h, rel_w = _along(q, rh, rw)
    parts = []
    for some in chunks((*q.shape[:2], k.shape[1]), attention_chunks.CHUNK, least=ALIGNED):
        for chunk in some:
            of_h, of_w, q_ = (chunk.of_rows(t) for t in (rel_h, rel_w, q))
            bias = (of_h[..., None] + of_w[..., None, :]).flatten(2)
            given = (q_, chunk.of_keys(k), chunk.of_keys(v), bias)
            parts.append(attend((*needs[:3], any(_bias(needs))), *given, scale=scale))
    # Rows of the same heads follow each other, so they do in memory.
    y = torch.cat([part.flatten(0, 1) for part in parts]).view(*q.shape[:2], v.shape[-1])
    return Forward(y, (Residue(q), Residue(k), Residue(v)), (rh, rw))


def _backward(
    needs: Needs, residues: tuple[Tensor, ...], extras: Tensors, dy: Tensor, *, scale: float
) -> Tensors:
    q, rh, rw = (t.to(dy.dtype) for t in (residues[0], *extras) if t is not None)
    found = [
        torch.zeros_like(t) if n else None for t, n in zip((q, rh, rw), _bias(needs), strict=True)
    ]
    rel: list[Tensor] = []
    of_rel: list[Tensor] = []

    def again(q_: Tensor, k_: Tensor, chunk: Chunk) -> Tensor:
        if chunk.rows.start == 0:
            rel[:] = _along(chunk.of_keys(q), rh, rw)
            of_rel[:] = [torch.empty_like(t) for t in rel]
        logits = torch.bmm(q_ * scale, k_.mT).unflatten(-1, (rh.shape[1], rw.shape[1]))
        of_h, of_w = (t[:, chunk.rows].to(logits.dtype) for t in rel)
        logits.add_(of_h[..., None]).add_(of_w[..., None, :])
        return torch.softmax(logits.flatten(2), -1)

    def take(ds: Tensor, chunk: Chunk) -> None:
        cells = ds.unflatten(-1, (rh.shape[1], rw.shape[1]))
        for whole, axis in zip(of_rel, (-1, -2), strict=True):
            whole[:, chunk.rows] = cells.sum(axis)
        if chunk.rows.stop == q.shape[1]:
            _add_bias(found, chunk, q, (rh, rw), of_rel)

    dq, dk, dv = attention_backward(needs[:3], residues, dy, scale, again, take)
    if dq is not None and found[0] is not None:
        dq += found[0]
    return dq, dk, dv, *found[1:]


def _bias(needs: Needs) -> Needs:
    return needs[0], *needs[3:]


def _add_bias(
    found: Sequence[Tensor | None],
    chunk: Chunk,
    q: Tensor,
    factors: Sequence[Tensor],
    of_rel: Sequence[Tensor],
) -> None:
    """Add the gradients of q, R_h and R_w from those of q R_h and q R_w, for some heads."""
    sides = tuple(map(len, factors))
    dq, *of_factors = found
    grid = chunk.of_keys(q).unflatten(1, sides)
    for axis, factor, total, of_one in zip("hw", factors, of_factors, of_rel, strict=True):
        cells = of_one.unflatten(1, sides)
        if dq is not None:
            chunk.of_keys(dq).add_(
                torch.einsum(f"bhwk,{axis}kc->bhwc", cells, factor).flatten(1, 2)
            )
        if total is not None:
            total += torch.einsum(f"bhwc,bhwk->{axis}kc", grid, cells)


ATTENTION_DECOMPOSED = Op(_forward, _backward)
"""y = P v, P = softmax(scale q k^T + q R_h + q R_w), MViTv2 (Li et al. 2022), equation 4.

    q (B, N, D) stands on a grid of H x W, k and v (B, M, D) on one of K_h x K_w;
    R_h (H, K_h, D), R_w (W, K_w, D): to a query in row i and a key in row j belongs R_h[i, j]

Neither P nor the bias is ever made whole, forward or backward. Rows are multiplied by 64 at least,
which a CPU adds up as it does all of them, so the forward is torch's to the last bit. The gradient
is that of attention, and with dS of the logits, d(q R_h) = sum of dS over the columns of keys.

Saves:
    What the codecs keep of the numbers in q, k and v; R_h and R_w as they are.
"""


class Decomposed:
    """A relative position bias kept as its two factors; torch's functions make it whole."""

    def __init__(self, q: Tensor, rh: Tensor, rw: Tensor) -> None:
        """Note what it is made of.

        Args:
            q: Queries (B, N, D).
            rh: R_h (H, K_h, D).
            rw: R_w (W, K_w, D).
        """
        self.q, self.factors = q, (rh, rw)

    def whole(self) -> Tensor:
        """Add the factors up to the whole bias, as timm does.

        Returns:
            q R_h + q R_w, (B, N, K_h x K_w).
        """
        rel_h, rel_w = _along(self.q, *self.factors)
        return (rel_h[..., None] + rel_w[..., None, :]).flatten(2)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Make the bias for a function that asks for it."""
        args, kwargs = tree_map(
            lambda a: a.whole() if isinstance(a, cls) else a, (args, kwargs or {})
        )
        return function(*args, **kwargs)


def _from_tables(
    q: Tensor, rows: Tensor, columns: Tensor, of_q: tuple[int, int], of_k: tuple[int, int]
) -> Decomposed:
    """Stand in for timm's `get_decomposed_rel_pos_bias`."""
    return Decomposed(q, *map(sam.get_rel_pos, of_q, of_k, (rows, columns)))


def answer(codecs: Codecs, q: Tensor, k: Tensor, v: Tensor, bias: Decomposed) -> Result:
    """Run attention with a decomposed bias.

    Args:
        codecs: Codec of each op.
        q: Queries (B, N, D).
        k: Keys (B, M, D).
        v: Values (B, M, D).
        bias: The bias.

    Returns:
        (B, N, D), or `NotImplemented` without a codec for attention or a gradient.
    """
    given = (q, k, v, *bias.factors)
    if "attention" not in codecs or not any(t.requires_grad for t in given):
        return NotImplemented
    scale = 1 / math.sqrt(max(1, q.shape[-1]))
    return saved(ATTENTION_DECOMPOSED, codecs["attention"], *given, scale=scale)


_SAM = opened(sam.Attention.forward, get_decomposed_rel_pos_bias=_from_tables)


def without_bias(
    module: nn.Module, kind: type[nn.Module], args: Sequence[Tensor]
) -> Callable[..., Tensor] | None:
    """Give a module's own forward, in which the bias stays decomposed.

    Args:
        module: Any module.
        kind: What it is.
        args: Its arguments.

    Returns:
        The forward, where the module is known and leaves the attention to torch's function.
    """
    if kind is not sam.Attention or not all(a.device.type in DEVICES for a in args):
        return None
    known: Any = module
    noisy = module.training and known.attn_drop.p > 0
    if torch.compiler.is_compiling() or noisy or not (known.use_rel_pos and known.fused_attn):
        return None
    return partial(_SAM, known)


CASES = {
    "attention_decomposed": Case(
        ATTENTION_DECOMPOSED,
        ((4, 6, 3), (4, 8, 3), (4, 8, 5), (2, 4, 3), (3, 2, 3)),
        lambda q, k, v, rh, rw: F.scaled_dot_product_attention(
            q,
            k,
            v,
            Decomposed(q, rh, rw),  # type: ignore[arg-type]
        ),
        lambda n: ((4, 6, 3), (4, 8, 3), (4, 8, 5)),
        {"scale": 1 / math.sqrt(3)},
        as_is=lambda n: [3, 4],
    )
}

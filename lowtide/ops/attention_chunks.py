"""Attention in chunks of its matrix: images, heads and query rows, so that no whole one is made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec
from ..core.alike import alike
from .saved import Needs, Tensors
from .softmax import softmax_backward

CHUNK = 1 << 21
"""Numbers of the attention matrix that are made at a time, or one row of it if that is more."""
ALIGNED = 64
"""Rows of a chunk are a multiple of it if there are as many: products add up as those of all."""


@dataclass(frozen=True)
class Chunk:
    """A part of an attention matrix (..., heads, N, M).

    Attributes:
        lead: Which entries of each axis in front of the rows.
        heads: How many heads there are in all.
        rows: Which queries.
    """

    lead: tuple[slice, ...]
    heads: int
    rows: slice

    @property
    def shape(self) -> tuple[int, ...]:
        """How many images and heads the chunk has."""
        return tuple(at.stop - at.start for at in self.lead)

    def of_keys(self, t: Tensor) -> Tensor:
        """Take the chunk's images and heads of keys or values.

        Args:
            t: Keys or values, with as many axes as the matrix, some of length 1 for all; a head may
                serve several of the matrix.

        Returns:
            A view, with all rows.
        """
        at = self.lead[-1]
        each = self.heads // t.shape[-3]
        heads = slice(at.start // each, -(-at.stop // each))
        where = (*self.lead[:-1], heads)
        sizes = t.shape[: len(where)]
        return t[tuple(s if n > 1 else slice(None) for s, n in zip(where, sizes, strict=True))]

    def of_rows(self, t: Tensor) -> Tensor:
        """Take the chunk's images, heads and query rows.

        Args:
            t: A row for each query, or one for all.

        Returns:
            A view.
        """
        part = self.of_keys(t)
        return part[..., self.rows, :] if t.shape[-2] > 1 else part

    def flat(self, t: Tensor) -> Tensor:
        """Take the chunk's images and heads, flattened into one axis.

        Args:
            t: As in `of_keys`.

        Returns:
            (images x heads, ...), a view if nothing is shared.
        """
        part, heads = self.of_keys(t), self.shape[-1]
        if part.shape[-3] not in (1, heads):
            part = part.repeat_interleave(heads // part.shape[-3], -3)
        return part.expand(*self.shape, *t.shape[-2:]).flatten(0, -3)


def chunks(
    shape: Sequence[int], most: int, shared: Sequence[int] = (), least: int = 1
) -> Iterator[list[Chunk]]:
    """Cut an attention matrix along as few of its axes as it takes, the first ones first.

    Args:
        shape: (..., heads, N, M), three axes at least.
        most: Numbers in a chunk.
        shared: By how many heads keys or values are shared, for each that is. A chunk holds all the
            heads that share one, several times perhaps, or an equal part of them.
        least: Fewest query rows in a chunk.

    Yields:
        The chunks of the same images and heads.
    """
    *lead, n, m = shape
    steps = [
        max(1, min(size, most // max(1, math.prod(shape[axis + 1 :]))))
        for axis, size in enumerate(lead)
    ]
    while any(steps[-1] % r and r % steps[-1] for r in shared):
        steps[-1] -= 1
    rows = max(1, least, most // max(1, m))
    rows -= rows % ALIGNED if ALIGNED < rows < n else 0
    starts = [at for at in range(0, n, rows) if at == 0 or n - at >= least]
    queries = [slice(*ends) for ends in itertools.pairwise((*starts, n))]
    for where in itertools.product(*map(_slices, lead, steps)):
        yield [Chunk(where, lead[-1], some) for some in queries]


def _slices(size: int, step: int) -> list[slice]:
    return [slice(at, min(size, at + step)) for at in range(0, size, step)]


def attend(
    needs: Needs, *tensors: Tensor | None, causal: bool = False, **options: object
) -> Tensor:
    """Call torch's attention function without keeping anything for its backward.

    Args:
        needs: Which tensors want one.
        *tensors: Queries, keys, values and perhaps a mask.
        causal: Whether a query sees no key behind it.
        **options: What else the function takes.

    Returns:
        Its result, without a history.
    """
    if torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(*tensors, is_causal=causal, **options)  # type: ignore[misc, arg-type]
    with quietly():
        # No leaves: autocast would remember what it casts those to.
        given = (
            t.detach().requires_grad_().view_as(t) if t is not None and need else t
            for t, need in zip(tensors, needs, strict=True)
        )
        y = F.scaled_dot_product_attention(*given, is_causal=causal, **options)  # type: ignore[misc, arg-type]
    return y.detach()


@contextmanager
def quietly() -> Iterator[None]:
    """Enable gradients, by which torch chooses its kernels, and keep nothing for them.

    Yields:
        Nothing.
    """
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_nothing, _nothing):
        yield


def _nothing(saved: object) -> Any:
    """Keep nothing for a backward pass that never comes."""


def attention_backward(
    needs: Needs,
    qkv: Sequence[Tensor],
    dy: Tensor,
    scale: float,
    attention: Callable[[Tensor, Tensor, Chunk], Tensor],
    take: Callable[[Tensor, Chunk], None] | None = None,
) -> Tensors:
    """Compute the gradients of q, k and v, and hand out that of the logits, chunk by chunk.

        dv = P^T dy,  dS = P (dP - sum(dP P)) with dP = dy v^T,  dq = scale dS k,  dk = scale dS^T q

    Args:
        needs: Which of q, k and v want one.
        qkv: Queries, keys and values.
        dy: Gradient of the result.
        scale: Factor of the logits.
        attention: Gives P of a chunk's queries and keys, (images x heads, n, M) of (..., n, D) and
            (..., M, D).
        take: Is given dS of each chunk, with the axes of the chunk.

    Returns:
        The gradients in dy's dtype, summed where a tensor was broadcast or its heads shared.
    """
    low, ndim = product_dtype(qkv, dy), axes((*qkv, dy))
    q, k, v = (aligned(t, ndim) for t in qkv)
    found = [
        torch.zeros_like(t, dtype=dy.dtype) if need else None
        for t, need in zip((q, k, v), needs[:3], strict=True)
    ]
    dy = aligned(dy, ndim)
    shared = [dy.shape[-3] // t.shape[-3] for t in (q, k, v) if t.shape[-3] > 1]
    matrix = (*dy.shape[:-1], k.shape[-2])
    for some in alike(chunks(matrix, _most(matrix), shared), lambda some: some[0].shape):
        lead = some[0].shape
        k_, v_ = (some[0].flat(t).to(low).contiguous() for t in (k, v))
        q_all, dy_all = (some[0].flat(t) for t in (q, dy))
        dq, dk, dv = (None if t is None else some[0].of_keys(t) for t in found)
        for chunk in alike(some, lambda chunk: chunk.rows.stop - chunk.rows.start):
            q_, dy_ = (t[:, chunk.rows].to(low).contiguous() for t in (q_all, dy_all))
            p = attention(q_, k_, chunk).to(low)
            ds = softmax_backward(torch.bmm(dy_, v_.mT), p, own=True)
            if dv is not None:
                add(dv, torch.bmm(p.mT, dy_).unflatten(0, lead))
            del p
            if dq is not None:
                add(dq[..., chunk.rows, :], torch.bmm(ds, k_).mul_(scale).unflatten(0, lead))
            if dk is not None:
                add(dk, torch.bmm(ds.mT, q_).mul_(scale).unflatten(0, lead))
            if take is not None:
                take(ds.unflatten(0, lead), chunk)
            del ds
    return tuple(
        None if t is None else t.view(given.shape) for t, given in zip(found, qkv, strict=True)
    )


def _most(matrix: Sequence[int]) -> int:
    """Say how many numbers of a matrix to take at a time: of a large one less, for P and dS."""
    if torch.compiler.is_compiling():
        return math.prod(matrix)
    return CHUNK if math.prod(matrix[-2:]) <= CHUNK // 2 else CHUNK // 2


def axes(tensors: Sequence[Tensor]) -> int:
    """Say how many axes to give every tensor: one for images in front of heads that differ.

    Args:
        tensors: Queries, keys, values and the result.

    Returns:
        Three at least.
    """
    most = max(t.ndim for t in tensors)
    heads = {t.shape[-3] for t in tensors if t.ndim > 2} - {1}
    return max(3, most + (most == 3 and len(heads) > 1))


def aligned(t: Tensor, ndim: int) -> Tensor:
    """Give a tensor as many axes as the others.

    Args:
        t: Any tensor.
        ndim: How many.

    Returns:
        A view, with axes of length 1 in front.
    """
    return t.view((1,) * (ndim - t.ndim) + t.shape) if t.ndim < ndim else t


def add(part: Tensor, gradient: Tensor) -> None:
    """Add the gradient of a chunk, summed where heads were shared or axes broadcast.

    Args:
        part: Of what is being summed; written to.
        gradient: With the axes of the chunk.
    """
    heads = part.shape[-3]
    if heads not in (1, gradient.shape[-3]):
        gradient = gradient.unflatten(-3, (heads, -1)).sum(-3)
    part += gradient if gradient.shape == part.shape else gradient.sum_to_size(part.shape)


def product_dtype(qkv: Sequence[Tensor], dy: Tensor) -> torch.dtype:
    """Choose the dtype of products: bfloat16 if q, k and v were recomputed in bfloat16.

    Args:
        qkv: Queries, keys and values.
        dy: Gradient of the result.

    Returns:
        A dtype.
    """
    return torch.bfloat16 if all(t.dtype == torch.bfloat16 for t in qkv) else dy.dtype


def finer(codec: Codec, sharpness: float) -> Codec:
    """Keep tokens in as many bits more as the rounding of their logits is larger.

    Logits are scale q k^T, and so are their errors: each doubling of the scale costs a bit.

    Args:
        codec: How they are kept where the scale is 1 / sqrt(D).
        sharpness: The scale, as a multiple of that.

    Returns:
        The codec, of groups with up to 8 bits; any other as it is.
    """
    # A product of roots is 1 up to its last bits.
    if not isinstance(codec, Affine) or sharpness < 1 + 1e-6:
        return codec
    wanted = codec.bits + math.ceil(math.log2(sharpness) - 1e-6)
    return replace(codec, bits=max(codec.bits, min(8, wanted)))

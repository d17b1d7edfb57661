"""Scaled dot-product attention: computed by torch's fused function, recomputed in the backward."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from ..codecs.affine import Affine
from ..codecs.base import Codec, Residue
from ..codecs.exact import Exact
from .attention_chunks import (
    Chunk,
    add,
    aligned,
    attend,
    attention_backward,
    axes,
    finer,
    product_dtype,
)
from .attention_decomposed import Decomposed, answer
from .case import Case, Shape
from .saved import Call, Calls, Codecs, Forward, Needs, Op, Result, Tensors, saved

FUSED = {"cuda"}
"""Devices where torch's own backward runs, whose fused kernels hold no part of the matrix."""


def weights(
    q: Tensor, k: Tensor, mask: Tensor | None, scale: float, causal: bool, first: int = 0
) -> Tensor:
    """Compute the attention matrix.

    Args:
        q: Queries (..., N, D).
        k: Keys (..., M, D), their leading axes broadcast with those of q; or fewer heads, each for
            several of q's.
        mask: Added to the logits, or where it is False, excludes; broadcasts to (..., N, M).
        scale: Factor of the logits.
        causal: Whether a query sees no key behind it.
        first: Place of the first query among all.

    Returns:
        softmax(scale q k^T + mask), (..., N, M); 0 where a row sees no key.
    """
    logits = torch.matmul(q * scale, _repeated(k, q).mT)
    if causal:
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril_(first)
        logits = logits.masked_fill_(~seen, -torch.inf)
    if mask is None:
        return torch.softmax(logits, -1)
    by_mask = mask.dtype == torch.bool
    logits = logits.masked_fill_(~mask, -torch.inf) if by_mask else logits.add_(mask)
    p: Tensor = torch.ops.aten._safe_softmax(logits, -1)
    return p


def _repeated(t: Tensor, like: Tensor) -> Tensor:
    """Repeat each head for its group of another tensor's heads."""
    if t.ndim < 3 or like.ndim < 3 or t.shape[-3] in (1, like.shape[-3]) or like.shape[-3] == 1:
        return t
    return t.repeat_interleave(like.shape[-3] // t.shape[-3], -3)


def _forward(
    needs: Needs,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> Forward:
    y = attend(needs, q, k, v, mask, **options)
    return Forward(y, (Residue(q), Residue(k), Residue(v)), (mask,))


def _backward(
    needs: Needs,
    residues: tuple[Tensor, Tensor, Tensor],
    extras: Tensors,
    dy: Tensor,
    *,
    scale: float,
    causal: bool,
    **options: Any,
) -> Tensors:
    (mask,) = extras
    if dy.device.type in FUSED and not torch.compiler.is_compiling():
        found = _fused(needs, residues, mask, dy, scale=scale, is_causal=causal, **options)
        if found is not None:
            return found

    of_mask = None if mask is None else aligned(mask, axes((*residues, dy)))
    wanted = torch.zeros_like(of_mask, dtype=dy.dtype) if needs[3] and of_mask is not None else None

    def again(q: Tensor, k: Tensor, chunk: Chunk) -> Tensor:
        if of_mask is None:
            return weights(q, k, None, scale, causal, chunk.rows.start)
        q, k = (t.unflatten(0, chunk.shape) for t in (q, k))
        p = weights(q, k, chunk.of_rows(of_mask), scale, causal, chunk.rows.start)
        return p.flatten(0, -3)

    def take(ds: Tensor, chunk: Chunk) -> None:
        if wanted is not None:
            add(chunk.of_rows(wanted), ds)

    gradients = attention_backward(needs, residues, dy, scale, again, take)
    return *gradients, None if wanted is None or mask is None else wanted.view(mask.shape)


def _fused(
    needs: Needs, qkv: tuple[Tensor, ...], mask: Tensor | None, dy: Tensor, **options: Any
) -> Tensors | None:
    """Differentiate torch's function, if it has a kernel that holds no matrix for these tensors."""
    low = product_dtype(qkv, dy)
    tensors = [t.detach() for t in (*qkv, mask) if t is not None]
    wanted = [t.requires_grad_() for t, need in zip(tensors, needs, strict=False) if need]
    with torch.enable_grad():
        q, k, v, *masks = (t if t.dtype == torch.bool else t.to(low) for t in tensors)
        bias = masks[0] if masks else None
        if torch._fused_sdp_choice(q, k, v, bias, **options) == SDPBackend.MATH.value:
            return None
        y = F.scaled_dot_product_attention(q, k, v, bias, **options)
    found = iter(torch.autograd.grad(y, wanted, dy.to(low)))
    return tuple(next(found) if need else None for need in needs)


ATTENTION = Op(_forward, _backward, coarse=True)
"""y = P v, P = softmax(scale q k^T + mask). Residues: q, k, v; P is computed again, chunk by chunk.

    dv = P^T dy,  dS = P (dP - sum(dP P)) with dP = dy v^T,  dq = scale dS k,  dk = scale dS^T q

Any leading axes, broadcast against each other; a head of k and v may serve several of q, and its
gradient is the sum over them. On a GPU torch's function does all that itself where it has a kernel
that makes no P for these shapes and dtypes. Extras: the mask.
Options: `scale`; `causal`; `enable_gqa` where heads of k and v serve several of q.

Saves:
    What the codecs keep of the numbers in q, k and v, and the mask as it is.
"""


def _forward_taken_apart(
    needs: Needs,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    causal: bool,
    mask_shape: Shape = (),
    in_place_of_y: bool = False,
    **options: object,
) -> Forward:
    y = attend(needs, q, k, v, mask, scale=scale, causal=causal, **options)
    attention = weights(q, k, mask, scale, causal)
    residues = (Residue(q), Residue(k), Residue(v), Residue(attention))
    if not in_place_of_y:
        return Forward(y, residues)
    given = (q.detach(), k.detach(), None if mask is None else mask.detach(), scale, causal)
    return Forward(y, residues, remake=lambda: weights(*given))


def _backward_taken_apart(
    needs: Needs,
    residues: tuple[Tensor, Tensor, Tensor, Tensor],
    extras: Tensors,
    dy: Tensor,
    *,
    scale: float,
    mask_shape: Shape = (),
    **options: object,
) -> Tensors:
    *qkv, attention = residues
    whole = aligned(attention, axes((*qkv, dy)))
    found = dy.new_zeros(mask_shape) if needs[3] else None
    of_mask = None if found is None else aligned(found, whole.ndim)

    def kept(q: Tensor, k: Tensor, chunk: Chunk) -> Tensor:
        return chunk.flat(whole)[:, chunk.rows]

    def take(ds: Tensor, chunk: Chunk) -> None:
        if of_mask is not None:
            add(chunk.of_rows(of_mask), ds)

    return *attention_backward(needs, qkv, dy, scale, kept, take), found


ATTENTION_TAKEN_APART = Op(_forward_taken_apart, _backward_taken_apart)
"""The same, with P as a fourth residue: for a quantised softmax, or a mask larger than P in bytes.
Options: `mask_shape`, of the mask; `in_place_of_y`: P is kept instead of y; where y lives on, P is
made of q and k again.

Saves:
    What the codecs keep of the numbers in q, k, v and P; no mask.
"""


def _answer(codecs: Codecs, call: Call) -> Result:
    q, k, v = (call.argument(place, name) for place, name in enumerate(("query", "key", "value")))
    mask = call.argument(3, "attn_mask")
    if isinstance(mask, Decomposed):
        return answer(codecs, q, k, v, mask)
    wanted = any(t is not None and t.requires_grad for t in (q, k, v, mask))
    if not wanted or q.ndim < 2 or call.argument(4, "dropout_p", 0.0) > 0:
        return NotImplemented
    scale = call.kwargs.get("scale")
    options = {
        # As torch says it, to the last bit.
        "scale": 1 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale,
        "causal": call.argument(5, "is_causal", False),
        **{name: True for name in ("enable_gqa",) if call.kwargs.get(name)},
    }
    tokens, of_p = codecs.get("attention"), codecs.get("softmax")
    if tokens is not None:
        tokens = finer(tokens, options["scale"] * math.sqrt(max(1, q.shape[-1])))
    if of_p is not None and _apart(of_p, tokens, q, k, v, mask):
        options["in_place_of_y"] = tokens is None and _is_fused(q, k, v, mask)
        options["mask_shape"] = () if mask is None else tuple(mask.shape)
        tokens = tokens or Exact()
        return saved(
            ATTENTION_TAKEN_APART, (tokens, tokens, tokens, of_p), q, k, v, mask, **options
        )
    return NotImplemented if tokens is None else saved(ATTENTION, tokens, q, k, v, mask, **options)


def _apart(
    of_p: Codec, tokens: Codec | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> bool:
    """Say whether codes of P are fewer bytes than what is kept otherwise."""
    heads = max(q.shape[-3:-2], k.shape[-3:-2])
    lead = torch.broadcast_shapes(q.shape[:-3], k.shape[:-3])
    codes = of_p.nbytes(torch.Size((*lead, *heads, q.shape[-2], k.shape[-2])), q.dtype)
    if tokens is not None:  # P is made of q, k and the mask again; a weight is there anyway
        return mask is not None and not mask.is_leaf and codes < mask.untyped_storage().nbytes()
    fused = _is_fused(q, k, v, mask)
    return not fused or codes < q[..., 0].numel() * v.shape[-1] * q.itemsize


def _is_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Say whether torch keeps the output, and not P."""
    alike = q.ndim == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2]
    return alike and (mask is None or not mask.requires_grad)


TIGHT = {"attention": Affine(4, 64, stats=torch.bfloat16)}
CALLS: Calls = {F.scaled_dot_product_attention: _answer}


def _case(
    q: Shape = (2, 3, 5, 4),
    k: Shape | None = None,
    v: Shape | None = None,
    mask: Shape | None = None,
    causal: bool = False,
    apart: tuple[Shape, ...] = (),
    **options: Any,
) -> Case:
    k = k or q
    v = v or k

    def plain(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, m, is_causal=causal, scale=0.7, **options)

    return Case(
        ATTENTION_TAKEN_APART if apart else ATTENTION,
        (q, k, v, mask),
        plain,
        lambda n: (q, k, v, *apart),
        {"scale": 0.7, "causal": causal, **options}
        | ({"mask_shape": mask} if apart and mask else {}),
        as_is=lambda n: [] if apart or mask is None else [3],
    )


_P = ((2, 3, 5, 5),)
_Q, _K = (2, 4, 5, 4), (2, 2, 6, 4)
CASES = {
    "attention": _case(),
    "attention_causal": _case(causal=True),
    "attention_bias": _case(mask=(1, 3, 5, 5)),
    "attention_mask": _case(mask=(2, 3, 5, 5)),
    "attention_apart": _case(apart=_P),
    "attention_apart_bias": _case(mask=(1, 3, 5, 5), apart=_P),
    "attention_flat": _case((5, 4), (6, 4), (6, 3)),
    "attention_tokens": _case((3, 5, 4), (3, 6, 4), (3, 6, 2), mask=(5, 6)),
    "attention_windows": _case((2, 2, 3, 5, 4), (2, 2, 3, 6, 4), mask=(3, 1, 6)),
    "attention_windows_apart": _case((2, 2, 3, 5, 4), apart=((2, 2, 3, 5, 5),)),
    "attention_shared_key": _case((2, 4, 5, 4), (1, 1, 6, 4), (2, 1, 6, 3), mask=(6,)),
    "attention_shared_query": _case((3, 5, 4), (2, 3, 6, 4), causal=True),
    "attention_groups": _case(_Q, _K, mask=(2, 1, 1, 6), enable_gqa=True),
    "attention_groups_apart": _case(_Q, _K, apart=((2, 4, 5, 6),), enable_gqa=True),
    "attention_groups_unequal": _case((4, 5, 4), (2, 6, 4), (1, 6, 3), enable_gqa=True),
}

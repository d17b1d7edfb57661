"""Scaled dot-product attention: computed by torch's fused function, recomputed in the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Residue
from ..codecs.exact import Exact
from .case import Case, Shape
from .saved import Answer, Call, Codecs, Forward, Needs, Op, Tensors, saved
from .softmax import softmax_backward

PIECE = 1 << 21
"""Numbers of the attention matrix that the backward holds at a time."""
FUSED = {"cuda"}
"""Devices where torch's own backward runs, whose fused kernels hold no part of the matrix."""


def weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """Compute the attention matrix.

    Args:
        q: Queries (B, H, N, D).
        k: Keys (B, H, M, D).
        mask: Added to the logits, or where it is False, excludes; broadcasts to (B, H, N, M).
        scale: Factor of the logits.
        causal: Whether a query sees no key behind it.

    Returns:
        softmax(scale q k^T + mask), (B, H, N, M).
    """
    logits = torch.matmul(q * scale, k.mT)
    if causal:
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril_()
        logits = logits.masked_fill_(~seen, -torch.inf)
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill_(~mask, -torch.inf)
    elif mask is not None:
        logits = logits.add_(mask)
    return torch.softmax(logits, -1)


def _attend(
    needs: Needs,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
) -> Tensor:
    """Call torch's function, which takes another kernel where the mask needs a gradient."""
    if mask is None or not needs[3] or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    drop = torch.autograd.graph.saved_tensors_hooks(_nothing, _nothing)
    with torch.enable_grad(), drop:
        mask = mask.detach().requires_grad_()
        y = F.scaled_dot_product_attention(
            q.detach(), k.detach(), v.detach(), mask, is_causal=causal, scale=scale
        )
    return y.detach()


def _nothing(saved: Any) -> Any:
    """Keep nothing for a backward pass that never comes."""


def _forward(
    needs: Needs,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    causal: bool,
) -> Forward:
    y = _attend(needs, q, k, v, mask, scale, causal)
    return Forward(y, (Residue(q), Residue(k), Residue(v)), (mask,))


def _backward(
    needs: Needs,
    residues: tuple[Tensor, Tensor, Tensor],
    extras: Tensors,
    dy: Tensor,
    *,
    scale: float,
    causal: bool,
) -> Tensors:
    (mask,) = extras
    if dy.device.type in FUSED and not torch.compiler.is_compiling():
        return _fused(needs, residues, mask, dy, scale, causal)

    def again(q: Tensor, k: Tensor, rows: slice) -> Tensor:
        here = mask[rows] if mask is not None and mask.ndim == 4 and len(mask) > 1 else mask
        return weights(q, k, here, scale, causal)

    return _piecewise(needs, residues, again, mask, dy, scale)


def _fused(
    needs: Needs,
    qkv: tuple[Tensor, ...],
    mask: Tensor | None,
    dy: Tensor,
    scale: float,
    causal: bool,
) -> Tensors:
    """Differentiate torch's function, which chooses one of its fused kernels for the device."""
    low = _product_dtype(qkv, dy)
    tensors = [t.detach() for t in (*qkv, mask) if t is not None]
    wanted = [t.requires_grad_() for t, need in zip(tensors, needs, strict=False) if need]
    with torch.enable_grad():
        q, k, v, *masks = (t if t.dtype == torch.bool else t.to(low) for t in tensors)
        bias = masks[0] if masks else None
        y = F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, scale=scale)
    found = iter(torch.autograd.grad(y, wanted, dy.to(low)))
    return tuple(next(found) if need else None for need in needs)


ATTENTION = Op(_forward, _backward, coarse=True)
"""y = P v, P = softmax(scale q k^T + mask). Residues: q, k, v; P is computed again, piece by piece.

    dv = P^T dy,  dS = P (dP - sum(dP P)) with dP = dy v^T,  dq = scale dS k,  dk = scale dS^T q

On a GPU torch's function does that itself. Extras: the mask.

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
) -> Forward:
    y = _attend(needs, q, k, v, mask, scale, causal)
    attention = weights(q, k, mask, scale, causal)
    return Forward(y, (Residue(q), Residue(k), Residue(v), Residue(attention)))


def _backward_taken_apart(
    needs: Needs,
    residues: tuple[Tensor, Tensor, Tensor, Tensor],
    extras: Tensors,
    dy: Tensor,
    *,
    scale: float,
    causal: bool,
) -> Tensors:
    *qkv, attention = residues
    like = dy.new_empty(()).expand(attention.shape)
    return _piecewise(needs, tuple(qkv), lambda q, k, rows: attention[rows], like, dy, scale)


ATTENTION_TAKEN_APART = Op(_forward_taken_apart, _backward_taken_apart)
"""The same, with P as a fourth residue: for a quantised softmax, or a mask larger than P in bytes.

Saves:
    What the codecs keep of the numbers in q, k, v and P; no mask.
"""


def _piecewise(
    needs: Needs,
    qkv: tuple[Tensor, ...],
    attention: Callable[[Tensor, Tensor, slice], Tensor],
    mask: Tensor | None,
    dy: Tensor,
    scale: float,
) -> Tensors:
    dq, dk, dv = (t.new_empty(t.shape, dtype=dy.dtype) for t in qkv)
    low = _product_dtype(qkv, dy)
    q, k, v, dy = (t.to(low) for t in (*qkv, dy))
    dmask = torch.zeros_like(mask) if needs[3] and mask is not None else None
    per_image = q.shape[1] * q.shape[2] * k.shape[2]
    some = len(q) if torch.compiler.is_compiling() else max(1, PIECE // max(1, per_image))
    for start in range(0, len(q), some):
        rows = slice(start, start + some)
        q_, k_, v_, dy_ = (t[rows].contiguous() for t in (q, k, v, dy))
        p = attention(q_, k_, rows).to(low)
        dv[rows] = torch.matmul(p.mT, dy_)
        ds = softmax_backward(torch.matmul(dy_, v_.mT), p)
        dq[rows] = torch.matmul(ds, k_)
        dk[rows] = torch.matmul(ds.mT, q_)
        if dmask is not None:
            part = dmask[rows] if dmask.ndim == 4 and len(dmask) > 1 else dmask
            part += ds.sum_to_size(part.shape)
    return dq.mul_(scale), dk.mul_(scale), dv, dmask


def _product_dtype(qkv: tuple[Tensor, ...], dy: Tensor) -> torch.dtype:
    # Computed again in bfloat16, they are multiplied in bfloat16.
    return torch.bfloat16 if all(t.dtype == torch.bfloat16 for t in qkv) else dy.dtype


def _answer(codecs: Codecs, call: Call) -> Any:
    q, k, v = (call.argument(place, name) for place, name in enumerate(("query", "key", "value")))
    mask = call.argument(3, "attn_mask")
    scale = call.kwargs.get("scale")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wanted = any(t is not None and t.requires_grad for t in (q, k, v, mask))
    alike = q.ndim == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2]
    if not wanted or not alike or call.argument(4, "dropout_p", 0.0) > 0:
        return NotImplemented
    options = {"scale": scale, "causal": call.argument(5, "is_causal", False)}
    tokens, of_p = codecs.get("attention"), codecs.get("softmax")
    # A mask of its own for every image is larger than what is kept of P.
    large_mask = mask is not None and mask.ndim == 4 and len(mask) > 1 and not mask.requires_grad
    if tokens is not None and not (large_mask and of_p is not None):
        return saved(ATTENTION, tokens, q, k, v, mask, **options)
    if of_p is not None:
        tokens = tokens or Exact()
        return saved(
            ATTENTION_TAKEN_APART, (tokens, tokens, tokens, of_p), q, k, v, mask, **options
        )
    return NotImplemented


TIGHT = {"attention": Affine(4, 64, stats=torch.bfloat16)}
CALLS: dict[Callable[..., Any], Answer] = {F.scaled_dot_product_attention: _answer}


def _case(causal: bool = False, mask: Shape | None = None, apart: bool = False) -> Case:
    qkv, p = (2, 3, 5, 4), (2, 3, 5, 5)

    def plain(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, m, is_causal=causal, scale=0.7)

    return Case(
        ATTENTION_TAKEN_APART if apart else ATTENTION,
        (qkv, qkv, qkv, mask),
        plain,
        lambda n: [qkv] * 3 + [p] * apart,
        {"scale": 0.7, "causal": causal},
        as_is=lambda n: [] if apart or mask is None else [3],
    )


CASES = {
    "attention": _case(),
    "attention_causal": _case(causal=True),
    "attention_bias": _case(mask=(1, 3, 5, 5)),
    "attention_mask": _case(mask=(2, 3, 5, 5)),
    "attention_apart": _case(apart=True),
    "attention_apart_bias": _case(mask=(1, 3, 5, 5), apart=True),
}

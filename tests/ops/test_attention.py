"""Attention in every form that models write it: torch's outputs and gradients, and fewer bytes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from kept import keeping, kept_bytes
from torch import Tensor, nn

from lowtide.codecs.exact import Exact
from lowtide.memory.compress import compress
from lowtide.memory.policies import POLICIES
from lowtide.memory.policy import Policy
from lowtide.ops import NAMES
from lowtide.ops.attention_chunks import finer
from lowtide.versions import classes

EVERYTHING = Policy({name: Exact() for name in NAMES})
"""Every op answered, none of them changed."""
LONG, SHORT, WIDE = 24, 17, 32


class Cross(nn.Module):
    """Queries of one tensor, keys and values of another, by a function of (q, k, v)."""

    def __init__(self, attend: Callable[..., Tensor], heads: int = 4, groups: int = 4) -> None:
        super().__init__()
        self.attend, self.heads, self.groups = attend, heads, groups
        self.q, width = nn.Linear(WIDE, WIDE), WIDE // heads * groups
        self.k, self.v = nn.Linear(WIDE, width), nn.Linear(WIDE, width)
        self.bias = nn.Parameter(torch.randn(heads, SHORT, LONG))
        self.out = nn.Linear(WIDE, WIDE)

    def forward(self, both: Tensor) -> Tensor:
        x, context = both.split([SHORT, LONG], 1)
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (
            m(context).unflatten(-1, (self.groups, -1)).transpose(1, 2) for m in (self.k, self.v)
        )
        return self.out(self.attend(q, k, v, self.bias).transpose(1, 2).flatten(2))


def flat(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(*(t.flatten(0, 1) for t in (q, k, v)))
    return y.unflatten(0, q.shape[:2])


def windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    parts = (t.unsqueeze(2) for t in (q, k, v))
    return F.scaled_dot_product_attention(*parts, is_causal=True).squeeze(2)


def written(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return ((q @ k.transpose(-2, -1)) * 0.3 + bias).softmax(-1) @ v


def batched(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    p = torch.baddbmm(bias.repeat(len(q) // len(bias), 1, 1), q, k.mT, beta=0.7, alpha=0.3)
    return torch.bmm(p.softmax(-1), v).unflatten(0, (-1, len(bias)))


def einstein(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    p = (torch.einsum("bhnd,bhmd->bhnm", q, k) + bias).softmax(-1)
    return torch.einsum("bhnm, bhmd -> bhnd", p, v)


def positions(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """A bias made of the queries, as SAM's."""
    of_places = bias.permute(1, 2, 0).repeat(1, 1, 2)
    along = torch.einsum("bhnd,nmd->bhnm", q, of_places)
    return F.scaled_dot_product_attention(q, k, v, along)


def sdpa(**options: Any) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **options)

    return attend


class Multihead(nn.Module):
    """torch's module on two tensors."""

    def __init__(self, weights: bool, first: bool, masks: tuple[str, ...], **options: Any) -> None:
        super().__init__()
        self.weights, self.masks, self.first = weights, masks, first
        self.module = nn.MultiheadAttention(WIDE, 4, batch_first=first, **options)
        self.x, self.k = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, self.module.kdim)
        self.v = nn.Linear(WIDE, self.module.vdim)

    def forward(self, both: Tensor) -> Tensor:
        both = both if self.first else both.transpose(0, 1)
        x, context = both.split([SHORT, LONG], 1 if self.first else 0)
        images = both.shape[0 if self.first else 1]
        given = {
            "key_padding_mask": torch.arange(LONG).expand(images, LONG) > LONG - 4,
            "attn_mask": torch.arange(LONG) + 9 < torch.arange(SHORT)[:, None],
        }
        k = self.k(context)
        v = k if self.module._qkv_same_embed_dim else self.v(context)
        masks = {name: given[name] for name in self.masks}
        y, weights = self.module(self.x(x), k, v, need_weights=self.weights, **masks)
        return y if weights is None else torch.cat((y.flatten(), weights.flatten()))


MASKS = ((), ("key_padding_mask",), ("attn_mask",), ("key_padding_mask", "attn_mask"))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "widths": {"kdim": 24, "vdim": 40},
    "added": {"add_bias_kv": True, "add_zero_attn": True},
}
FORMS: dict[str, Callable[[], nn.Module]] = {
    "sdpa": lambda: Cross(sdpa()),
    "sdpa on three axes": lambda: Cross(flat),
    "sdpa on five axes": lambda: Cross(windows),
    "grouped": lambda: Cross(sdpa(enable_gqa=True), groups=2),
    "one key for all": lambda: Cross(sdpa(), groups=1),
    "bias from queries": lambda: Cross(positions),
    "matmul": lambda: Cross(written),
    "one key for all, matmul": lambda: Cross(written, groups=1),
    "baddbmm": lambda: Cross(batched),
    "einsum": lambda: Cross(einstein),
    **{
        f"multihead {name} {weights} {first} {masks}": (
            lambda o=options, w=weights, f=first, m=masks: Multihead(w, f, m, **o)
        )
        for (name, options), weights, first, masks in itertools.product(
            OPTIONS.items(), (True, False), (True, False), MASKS
        )
        if first or not masks
    },
}


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    y = model(x)
    torch.manual_seed(4)
    found = torch.autograd.grad(
        y, list(model.parameters()), torch.randn_like(y), materialize_grads=True
    )
    return y.detach(), torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_torchs_with_exact_codecs(form: str) -> None:
    model, x = FORMS[form]().double(), torch.randn(3, SHORT + LONG, WIDE, dtype=torch.float64)
    y, gradient = run(model, x)
    y_kept, kept = run(compress(model, EVERYTHING), x)
    assert torch.equal(y_kept, y)
    torch.testing.assert_close(kept, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("policy", ["tight", "s2a"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_answered(form: str, policy: str, autocast: bool) -> None:
    model, x = FORMS[form](), torch.randn(3, SHORT + LONG, WIDE)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, gradient = run(model, x)
        before = kept_bytes(model, x)
        compress(model, policy)
        y_kept, kept = run(model, x)
        share = kept_bytes(model, x) / before
    assert torch.equal(y_kept, y)
    assert F.cosine_similarity(kept.double(), gradient.double(), dim=0) > 0.99
    if policy == "tight":
        assert share < (0.75 if autocast else 0.5)


def test_a_row_that_sees_no_key_has_no_gradient_as_in_torch() -> None:
    seen = torch.ones(SHORT, LONG, dtype=torch.bool)
    seen[3] = False
    for mask in (seen, torch.zeros(SHORT, LONG).masked_fill(~seen, -torch.inf)):
        model, x = Cross(sdpa(attn_mask=mask)), torch.randn(3, SHORT + LONG, WIDE)
        (y, gradient), (y_kept, kept) = run(model, x), run(compress(model, EVERYTHING), x)
        assert torch.equal(y_kept, y) and kept.isfinite().all()
        torch.testing.assert_close(kept, gradient, rtol=1e-4, atol=1e-4)


TIMM: dict[str, dict[str, Any]] = {
    "samvit_base_patch16": {"img_size": 64, "embed_dim": 64, "depth": 3, "num_heads": 2},
    "nest_tiny": {"img_size": 64},
    "twins_svt_small": {"img_size": 64, "embed_dims": [32, 64, 64, 64], "depths": [1, 2, 1, 1]},
    "levit_128s": {"img_size": 224},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 24, "depths": (2, 2)},
}


@pytest.mark.parametrize("name", TIMM)
def test_models_with_attention_of_their_own_keep_at_most_half(name: str) -> None:
    model = timm.create_model(name, num_classes=4, **TIMM[name])
    size = TIMM[name]["img_size"]
    x = torch.randn(2, 3, size, size)
    y, before = model.eval()(x), kept_bytes(model, x)
    compress(model, "tight")
    assert torch.equal(model(x), y)
    assert kept_bytes(model, x) < before / 2


@pytest.mark.parametrize(
    ("scale", "bits"), [(None, 4), (0.1, 4), (0.25, 4), (0.3, 5), (1.0, 6), (9.0, 8)]
)
def test_a_larger_scale_of_the_logits_costs_bits(scale: float | None, bits: int) -> None:
    heads, depth = 2, 16  # 1 / sqrt(16) = 0.25
    q, k, v = (torch.randn(3, heads, 8, depth, requires_grad=True) for _ in range(3))

    class Attention(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, scale=scale)

    with keeping() as kept:
        compress(Attention(), POLICIES["tight"]())(q, k, v)
    codes = [t.numel() for t in kept if t.dtype == torch.uint8]
    assert codes == [q.numel() * bits // 8] * 3


def test_sharp_attention_keeps_the_direction_of_its_gradient() -> None:
    kinds = classes("timm.models.gemma4_vit", "Gemma4VitClassifier")
    if not kinds:
        pytest.skip("this timm has no Gemma 4")
    (kind,) = kinds
    model = kind(img_size=96, embed_dim=64, depth=4, num_heads=2, head_dim=64, num_classes=5)
    x, found = torch.randn(2, 3, 96, 96), []
    for policy in ("exact", "tight"):
        compress(model, policy)
        model.zero_grad()
        model(x).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert F.cosine_similarity(*found, dim=0) > 0.99


def test_the_usual_scale_costs_no_bit_at_any_depth() -> None:
    codec = POLICIES["tight"]().codecs["attention"]
    for depth in range(1, 300):
        assert finer(codec, 1 / math.sqrt(depth) * math.sqrt(depth)) == codec

"""The backward of attention by torch's fused function, as on a GPU, without one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowtide.codecs.affine import Affine
from lowtide.codecs.exact import Exact
from lowtide.ops import attention, attention_chunks
from lowtide.ops.attention import ATTENTION
from lowtide.ops.saved import saved

SCALE = 0.7
MASKS = {
    "none": lambda: None,
    "added to all": lambda: torch.randn(9, 7, dtype=torch.float64),
    "each image's": lambda: torch.randn(2, 3, 9, 7, dtype=torch.float64),
    "where": lambda: torch.rand(2, 1, 9, 7) > 0.3,
    "causal": lambda: None,
}


@pytest.fixture
def qkv() -> list[Tensor]:
    sizes = ((9, 4), (7, 4), (7, 5))  # v is wider than q and k
    return [torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True) for size in sizes]


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    logits = torch.einsum("bhnd,bhmd->bhnm", q, k) * SCALE
    if causal:
        later = torch.arange(k.shape[2]) > torch.arange(q.shape[2])[:, None]
        logits = logits.masked_fill(later, -math.inf)
    if mask is not None:
        added = mask if mask.dtype != torch.bool else torch.where(mask, 0.0, -math.inf).to(q.dtype)
        logits = logits + added
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return torch.einsum("bhnm,bhmd->bhnd", p, v)


@pytest.mark.parametrize("has_kernel", [True, False])
@pytest.mark.parametrize("name", MASKS)
def test_gradients_in_float64(
    name: str, has_kernel: bool, qkv: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "FUSED", {"cpu"})
    # A CPU has none for a wider v or a trained mask, where a GPU has one.
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *a, **k: int(has_kernel))
    mask, causal = MASKS[name](), name == "causal"
    if mask is not None and mask.dtype == torch.bool:
        mask[..., 0] = True  # a query sees a key at least
    trained = mask is not None and mask.dtype != torch.bool
    for *some, of_mask in itertools.product((True, False), repeat=4):
        if not any(some) or of_mask and not trained:
            continue
        for t, need in zip((*qkv, mask), (*some, of_mask), strict=True):
            if t is not None:
                t.requires_grad_(need)
        wanted = [t for t in (*qkv, mask) if t is not None and t.requires_grad]
        y = saved(ATTENTION, Exact(), *qkv, mask, scale=SCALE, causal=causal)
        dy = torch.randn_like(y)
        ours = torch.autograd.grad(y, wanted, dy)
        theirs = torch.autograd.grad(written_out(*qkv, mask, causal), wanted, dy)
        torch.testing.assert_close(ours, theirs)


def test_what_was_computed_again_in_bfloat16_gives_gradients_in_the_dtype_of_dy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs, dy = (True, True, True, False), torch.randn(2, 3, 9, 4)
    residues = tuple(torch.randn(2, 3, 9, 4).bfloat16() for _ in range(3))
    given = (needs, residues, (None,), dy)
    pieces = ATTENTION.backward(*given, scale=SCALE, causal=False)
    monkeypatch.setattr(attention, "FUSED", {"cpu"})
    fused = ATTENTION.backward(*given, scale=SCALE, causal=False)
    for a, b in zip(fused[:3], pieces[:3], strict=True):
        torch.testing.assert_close(a.float(), b, rtol=3e-2, atol=5e-2)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any function gives."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return result


def largest_in_backward(shape: tuple[int, ...], of_v: int, mask: Tensor | None = None) -> int:
    qkv = [torch.randn(*shape, d, requires_grad=True) for d in (8, 8, of_v)]
    y = saved(ATTENTION, Affine(4, 64), *qkv, mask, scale=SCALE, causal=False)
    with Largest() as largest:
        torch.autograd.grad(y, qkv, torch.randn_like(y))
    return largest.numbers


@pytest.mark.parametrize("fused", [True, False])
def test_the_matrix_is_never_there(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "FUSED", {"cpu"} if fused else set())
    assert (largest_in_backward((1, 1, 128), 8) < 128 * 128) == fused


@pytest.mark.parametrize(
    ("shape", "of_v", "mask"),
    [
        ((1, 1, 128), 12, None),
        ((1, 1, 128), 8, torch.zeros(128, 128, requires_grad=True)),
    ],
    ids=["a wider v", "a trained mask"],
)
def test_where_torch_has_no_kernel_the_matrix_is_made_in_chunks(
    shape: tuple[int, ...], of_v: int, mask: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "FUSED", {"cpu"})
    monkeypatch.setattr(attention_chunks, "CHUNK", 64 * 128)
    numbers = largest_in_backward(shape, of_v, mask)
    # Half a chunk, as the matrix is larger than one; or the mask's own gradient.
    assert numbers == (32 * 128 if mask is None else 128 * 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_head", [1, 8, 20, 64, 80, 160])
def test_heads_of_any_size_in_every_dtype(
    of_head: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "FUSED", {"cpu"})
    monkeypatch.setattr(attention, "attention_backward", None)  # torch's kernel does it
    # As a fused map of queries, keys and values gives them: not contiguous.
    qkv = torch.randn(2, 7, 3, 3, of_head, dtype=dtype).permute(2, 0, 3, 1, 4)
    scale, dy = of_head**-0.5, torch.randn(2, 3, 7, of_head, dtype=dtype)
    given = [t.requires_grad_() for t in qkv.unbind()]
    y = saved(ATTENTION, Exact(), *given, None, scale=scale, causal=False)
    ours = torch.autograd.grad(y, given, dy)
    exact = [t.detach().double().requires_grad_() for t in given]
    plain = torch.softmax(exact[0] @ exact[1].mT * scale, -1) @ exact[2]
    theirs = torch.autograd.grad(plain, exact, dy.double())
    rounding = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 6e-3}[dtype]
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=rounding, atol=rounding)

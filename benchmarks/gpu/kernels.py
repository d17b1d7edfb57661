"""The kernels on their own: whether they give the bits of their definitions, and how fast."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks.gpu.works import Found, Setting, fastest
from lowtide.codecs.affine import Affine
from lowtide.codecs.base import Residue
from lowtide.codecs.codebook import Codebook
from lowtide.codecs.normal_float import NormalFloat
from lowtide.kernels.activation import FUNCTIONS, activation_pack, activation_pack_plain
from lowtide.kernels.affine import affine_unpack_plain
from lowtide.kernels.layer_norm import layer_norm_backward, layer_norm_backward_plain
from lowtide.kernels.threshold_codes import threshold_table
from lowtide.ops.unary import SLOPES

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NORM = Affine(4, 128, stats=torch.bfloat16)


def codec(bits: int, n: int, setting: Setting) -> Found:
    """Pack and unpack on the device and on the CPU."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    kept = Affine(bits)
    here, there = x.to(setting.device), x
    packed = [kept.pack(Residue(t)) for t in (here, there)]
    back = [kept.unpack(p, x.shape, x.dtype).cpu() for p in packed]
    same = [bool(torch.equal(a.cpu(), b)) for a, b in zip(*packed, strict=True)]
    return {"difference": float((back[0] - back[1]).abs().max()), "same bits": all(same)}


def activation(name: str, dtype: str, rows: int, setting: Setting) -> Found:
    """A function with its slope's codes in one kernel, against one after the other."""
    x = 2 * torch.randn(rows, 3072, device=setting.device, dtype=DTYPES[dtype])
    edges, codes = threshold_table(SLOPES[name], Codebook.of("gelu").cuts)
    given = (x, name, list(edges), list(codes), 4)
    ours, theirs = activation_pack(*given), activation_pack_plain(*given)
    found: Found = {"same bits": all(map(torch.equal, ours, theirs))}
    gpu: Any = sys.modules.get("lowtide.kernels.triton_activation")
    fused = gpu is not None and x.is_cuda
    found["one kernel"] = fused and gpu.equals_torch(name, x.dtype, x.device)
    ways = {
        "ms": partial(activation_pack, *given),
        "ms of two steps": partial(activation_pack_plain, *given),
        "ms of torch's": partial(FUNCTIONS[name], x),
    }
    return found | _timed(ways, setting)


def layer_norm(dtype: str, rows: int, setting: Setting) -> Found:
    """A layer norm's forward with codes, and its backward from them, against torch's own."""
    x, dy = (torch.randn(rows, 768, device=setting.device, dtype=DTYPES[dtype]) for _ in range(2))
    w = torch.rand(768, device=setting.device, dtype=x.dtype)
    _, mean, rstd = torch.native_layer_norm(x.float(), (768,), None, None, 1e-6)
    packed = torch.ops.lowtide.affine_pack(x, mean, rstd, 4, 128, NORM.stats)
    given = (dy, *packed, rstd, w, 4, 128, True)
    ours, theirs = layer_norm_backward(*given), layer_norm_backward_plain(*given)
    worst = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    wide, needs = (x.float(), mean, rstd, w.float(), w.float()), [True] * 3
    back = torch.ops.aten.native_layer_norm_backward
    ways = {
        "ms": partial(layer_norm_backward, *given),
        "ms of torch's": lambda: back(dy.float(), wide[0], (768,), *wide[1:], needs),
        "ms to pack": lambda: torch.ops.lowtide.affine_pack(x, mean, rstd, 4, 128, NORM.stats),
        "ms of torch's forward": lambda: F.layer_norm(x, (768,), w, w),
    }
    return {"difference": worst} | _timed(ways, setting)


def weight(kind: str, dtype: str, side: int, setting: Setting) -> Found:
    """The widening of a weight in 4 bits, against plain torch's."""
    w = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(setting.device)
    kept: NormalFloat | Affine = NormalFloat() if kind == "nf4" else Affine(4, 64)
    packed, shape = kept.pack(Residue(w)), w.shape
    unpack = partial(kept.unpack, packed, shape, DTYPES[dtype])
    back = kept.unpack(tuple(t.cpu() for t in packed), shape, DTYPES[dtype])
    found: Found = {"same bits": bool(torch.equal(unpack().cpu(), back))}
    ways = {"ms": unpack}
    if isinstance(kept, Affine):
        given = (*packed, list(shape), 4, 64, DTYPES[dtype])
        ways["ms of two steps"] = partial(affine_unpack_plain, *given)
    return found | _timed(ways, setting)


def attention(dtype: str, of_head: int, masked: bool, setting: Setting) -> Found:
    """Which kernel torch has for an attention's backward; without one it is cut into chunks."""
    shape = (8, 12, 197, of_head)
    options = {"device": setting.device, "dtype": DTYPES[dtype], "requires_grad": True}
    q, k, v = (torch.randn(shape, **options) for _ in range(3))
    mask = torch.zeros(1, 12, 197, 197, **options) if masked else None
    choice = SDPBackend(torch._fused_sdp_choice(q, k, v, mask, 0.0, False)).name
    wanted: list[Tensor] = [t for t in (q, k, v, mask) if t is not None]
    y = F.scaled_dot_product_attention(q, k, v, mask)
    dy = torch.randn_like(y)
    ways = {"ms": lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)}
    return {"kernel": choice} | _timed(ways, setting)


def _timed(ways: dict[str, Callable[[], object]], setting: Setting) -> Found:
    return {name: round(1000 * fastest(setting, work), 4) for name, work in ways.items()}

"""UniPT: its equations written out, its counts, and a backbone that keeps nothing."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from counts import trained
from nets import FEW, images, near, stir, tiny
from torch import Tensor, nn

import lowtide
from lowtide.core.site import Sites
from lowtide.errors import Unsupported
from lowtide.families import family_of, measure
from lowtide.methods.unipt import UniPT

DIMS = {
    "vit": [768] * 13,
    "swin": [128] * 3 + [256] * 2 + [512] * 18 + [1024] * 2,
    "convnext": [128] * 4 + [256] * 3 + [512] * 27 + [1024] * 3,
    "resnet50": [64] + [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3,
}
"""Widths of the stem's output and of every block's."""


@pytest.mark.parametrize(
    "backbone, count",
    [("vit", 2_110_272), ("swin", 3_461_888), ("convnext", 5_011_200), ("resnet50", 9_106_944)],
)
def test_count(backbone: str, count: int) -> None:
    """One map with bias and norm per tap and anchor; the gate; the projection; the way up."""
    dims = DIMS[backbone]
    c, m = dims[-1], dims[-1] // 4
    assert sum(d * m + 3 * m for d in dims) + m + m * m + 3 * m + m * c + c == count
    assert trained(backbone, UniPT()) == count


def test_count_at_the_authors_width() -> None:
    assert trained("vit", UniPT(reduction=2)) == 4_293_504


def test_count_on_a_vit_is_the_published_one() -> None:
    assert round(trained("vit", UniPT()) / 1e6, 2) == 2.11
    assert round(100 * (trained("vit", UniPT()) + 76_900) / 85_798_656, 2) == 2.55


def tokens(x: Tensor, family: str, grid: tuple[int, int]) -> Tensor:
    """Average the cells of a map that fall on each cell of the last grid; rows are positions."""
    if family == "vit":
        return x
    x = x.permute(0, 3, 1, 2) if family == "swin" else x
    (h, w), (b, c, height, width) = grid, x.shape
    x = x.reshape(b, c, h, height // h, w, width // w).mean((3, 5))
    return x.permute(0, 2, 3, 1).reshape(b, h * w, c)


@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet"])
@pytest.mark.parametrize("init", ["paper", "identity"])
def test_the_equations(family: str, init: str) -> None:
    model = tiny(family).eval()
    tuned = lowtide.apply(model, UniPT(reduction=2, init=init), num_classes=FEW).eval()
    stir(tuned)
    s, x = tuned.adapter_state(), images(model)
    grid = tuned.sites.of("block")[-1].grid

    def down(name: str, x: Tensor) -> Tensor:
        (w, b), affine = ([s[f"./unipt/{name}.{i}.{n}"] for n in ("weight", "bias")] for i in "01")
        return F.layer_norm(x @ w.T + b, b.shape, *affine)

    z = tuned.family.stem(model, x)
    taps, blocks = [("stem", z)], [b.path for b in tuned.sites.of("block")]
    for path in tuned.family.chain(model):
        z = model.get_submodule(path)(z)
        taps += [(f"taps.{path.replace('.', '-')}", z)] if path in blocks else []
    a = down("anchor", tokens(taps.pop()[1], family, grid))
    gate, merged = [], []
    for name, h in taps:
        t = down(name, tokens(h, family, grid))
        weights = F.normalize(torch.einsum("bnm,bkm->bnk", a, t).clamp(min=0), p=1, dim=2)
        merged.append((weights + torch.eye(t.shape[1])) @ t)
        gate.append((a.mean(1) * t.mean(1)) @ s["./unipt/gate.weight"][0])
    w = torch.exp(torch.stack(gate))
    w /= w.sum(0)
    gathered = sum(wi[:, None, None] * mi for wi, mi in zip(w, merged, strict=True))
    y = F.relu(a + down("project", gathered))
    y = y @ s["./unipt/up.weight"].T + s["./unipt/up.bias"]
    if family != "vit":
        y = y.reshape(len(x), *grid, -1)
        y = y if family == "swin" else y.permute(0, 3, 1, 2)
    y = z + y if init == "identity" else y
    near(tuned(x), model.forward_head(tuned.family.finish(model, y)))


@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet", "mixer"])
def test_the_backbone_keeps_nothing(family: str) -> None:
    """No block has a graph; every byte before the final norm is a tap's or the aggregation's."""
    model = tiny(family)
    tuned = lowtide.apply(model, UniPT(), num_classes=FEW).train()
    own = {p.data_ptr() for p in tuned.parameters()}
    inside, kept = [False], dict[int, int]()

    def enter(*_: object) -> None:
        inside[0] = True

    def leave(block: nn.Module, args: object, y: Tensor) -> None:
        inside[0] = False
        assert not y.requires_grad

    def pack(t: Tensor) -> Tensor:
        assert not inside[0]
        if t.data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    for path in tuned.family.chain(model):
        model.get_submodule(path).register_forward_pre_hook(enter)
        model.get_submodule(path).register_forward_hook(leave)
    side, x, by_the_side = tuned.sides["unipt"], images(model), []
    finish = side.finish
    side.finish = lambda x, state: (finish(x, state), by_the_side.append(sum(kept.values())))[0]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        tuned(x)
    blocks = tuned.sites.of("block")
    b, m, k = len(x), blocks[-1].dim // 4, len(blocks)
    n = blocks[-1].out_shape[1] if family in {"vit", "mixer"} else math.prod(blocks[-1].grid)
    norm = n * m + 2 * n  # what it reads, mean and deviation
    inputs = n * sum([blocks[0].in_dim, *(s.dim for s in blocks)])
    taps = (k + 1) * (norm + n * m)
    gathering = k * (n * n + n * m + 3 * n) + k * (2 * m + 1) + m
    assert by_the_side == [8 * b * (inputs + taps + gathering + norm + 2 * n * m)]


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_it_starts_at_the_backbone_if_told_to(family: str) -> None:
    model = tiny(family).eval()
    x = images(model)
    before = model(x)
    near(lowtide.apply(model, UniPT(init="identity")).eval()(x), before)
    assert UniPT(init="identity").identity and not UniPT().identity


def test_refusals() -> None:
    with pytest.raises(ValueError, match="not 0"):
        UniPT(reduction=0)
    with pytest.raises(Unsupported, match=r"divides a width by 64, and blocks.3 has 32"):
        lowtide.apply(tiny("vit"), UniPT(reduction=64))
    model = tiny("vit")
    sites = list(measure(model, family_of(model)))
    i = next(i for i, s in enumerate(sites) if s.path == "blocks.0")
    sites[i] = dataclasses.replace(sites[i], in_shape=(1, 65, 32))
    with pytest.raises(Unsupported, match=r"unipt pools grids, and blocks.0 has 65 tokens"):
        UniPT().edits(Sites(sites))

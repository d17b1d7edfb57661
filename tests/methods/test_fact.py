"""FacT in both forms against whole weights, the published counts, and what is shared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from counts import on_meta, trained
from nets import images, near, stir, tiny
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import lowtide
from lowtide.errors import Unsupported
from lowtide.methods.bias import Bias
from lowtide.methods.fact_tk import FacTTK
from lowtide.methods.fact_tt import FacTTT
from lowtide.methods.lora import LoRA
from lowtide.planning.meter import Meter

BOTH = [FacTTT, FacTTK]
over_both = pytest.mark.parametrize("kind", BOTH)
SWIN = {128: 2, 256: 2, 512: 18, 1024: 2}
CONVNEXT = {128: 3, 256: 3, 512: 27, 1024: 3}


@pytest.mark.parametrize(
    "backbone, method, count",
    [
        ("vit", FacTTT(rank=16), 61_440),
        ("vit", FacTTT(rank=8), 21_504),
        ("vit", FacTTT(rank=4), 8_448),
        ("vit", FacTTK(rank=32), 86_528),
        ("vit", FacTTK(rank=16), 30_976),
        ("swin", FacTTT(rank=8), sum(2 * c * 8 + 12 * n * 64 for c, n in SWIN.items())),
        ("swin", FacTTK(rank=8), sum(2 * c * 8 + 512 + 12 * n * 8 for c, n in SWIN.items())),
        ("convnext", FacTTT(rank=8), sum(2 * c * 8 + 8 * n * 64 for c, n in CONVNEXT.items())),
    ],
    ids=str,
)
def test_count(backbone: str, method: Any, count: int) -> None:
    assert trained(backbone, method) == count


def test_places_on_a_vit() -> None:
    state = on_meta("vit", FacTTT()).adapter_state()
    maps = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    cores = {k.partition("/")[0]: v.numel() for k, v in state.items() if "core" in k}
    assert cores.keys() == {f"blocks.{i}.{m}" for i in range(12) for m in maps}
    assert [cores[f"blocks.3.{m}"] // 256 for m in sorted(maps)] == [1, 3, 4, 4]


def middle(graft: Any, i: int, inputs: int) -> Tensor:
    """Sigma of one slice: stored (TT), or mixed from the shared matrices (TK)."""
    core, r = graft.core, len(graft.U)
    if hasattr(core, "P"):
        return sum(core.P[i, j] * core.C[j] for j in range(r))
    rows = core.weight if inputs == 1 else core.weight.T
    block = rows[i * r : (i + 1) * r]
    return block if inputs == 1 else block.T


def update(graft: Any, root: nn.Module, width: int) -> Tensor:
    """s V Sigma_i U, laid out slice by slice; the slices of fc2 stand side by side."""
    weight = torch.zeros_like(root.weight.flatten(1))
    inputs = weight.shape[1] // width
    for i in range(max(weight.shape) // width):
        at = slice(i * width, (i + 1) * width)
        piece = graft.scale * graft.V @ middle(graft, i, inputs) @ graft.U
        if inputs > 1:
            weight[:, at] = piece
        else:
            weight[at] = piece
    return weight.view_as(root.weight)


@over_both
@pytest.mark.parametrize("path", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
def test_the_equation_and_its_fold(kind: Any, path: str) -> None:
    model = tiny("vit").eval()
    path = f"blocks.2.{path}"
    root = model.get_submodule(path)
    tuned = lowtide.apply(model, kind(rank=3, scale=0.7)).eval()
    stir(tuned)
    graft = model.get_submodule(path)
    x = torch.randn(2, 5, root.in_features, dtype=torch.float64)
    with torch.no_grad():
        delta = update(graft, root, 32)
        assert delta.abs().max() > 1e-3
        near(graft(x), F.linear(x, root.weight + delta, root.bias))
        near(graft.merged().weight, root.weight + delta)


def interleaved(graft: Any, x: Tensor, role: str) -> Tensor:
    """The update as the authors' code computes it, index by index.

    T[a, b, s] = sum_j C[j, b, a] P[s, j] is reshaped to (r, 4 r): column 4 b + s.
    """
    r, width = graft.U.shape
    quarters = range(4)
    core = torch.einsum("jba,sj->abs", graft.core.C, graft.core.P)
    if role == "fc1":
        u, h = graft.U @ x, torch.zeros(4 * r, dtype=x.dtype)
        for b in range(r):
            for s in quarters:
                h[4 * b + s] = sum(u[a] * core[a, b, s] for a in range(r))
        return torch.cat([graft.V @ h[k * r : (k + 1) * r] for k in quarters])
    u = torch.cat([graft.U @ x[k * width : (k + 1) * width] for k in quarters])
    out = torch.zeros(r, dtype=x.dtype)
    for a in range(r):
        out[a] = sum(u[4 * b + s] * core[a, b, s] for b in range(r) for s in quarters)
    return graft.V @ out


@pytest.mark.parametrize("role", ["fc1", "fc2"])
def test_interleaved_is_the_function_of_the_authors_code(role: str) -> None:
    model = tiny("vit").eval()
    path = f"blocks.1.mlp.{role}"
    root = model.get_submodule(path)
    tuned = lowtide.apply(model, FacTTK(rank=3, scale=0.7, interleave=True)).eval()
    stir(tuned)
    graft = model.get_submodule(path)
    x = torch.randn(root.in_features, dtype=torch.float64)
    with torch.no_grad():
        expected = root(x) + 0.7 * interleaved(graft, x, role)
        tucker = F.linear(x, root.weight + update(graft, root, 32), root.bias)
        assert (expected - tucker).abs().max() > 0.02
        near(graft(x), expected)
        near(graft.merged()(x), expected)


def test_interleaving_leaves_attention_and_the_count_alone() -> None:
    model = tiny("vit").eval()
    tuned = lowtide.apply(model, FacTTK(rank=3, interleave=True)).eval()
    stir(tuned)
    for name in ("qkv", "proj"):
        graft = model.get_submodule(f"blocks.1.attn.{name}")
        x = torch.randn(2, 5, 32, dtype=torch.float64)
        delta = update(graft, graft.root, 32)
        near(graft(x), F.linear(x, graft.root.weight + delta, graft.root.bias))
    assert trained("vit", FacTTK(rank=32, interleave=True)) == 86_528


@over_both
def test_channels_may_come_first(kind: Any) -> None:
    model = tiny("as_mlp").eval()
    paths = [p for p, m in model.named_modules() if p.endswith(("mlp.fc1", "mlp.fc2"))][:2]
    roots = [model.get_submodule(p) for p in paths]
    tuned = lowtide.apply(model, kind(rank=3)).eval()
    stir(tuned)
    for path, root in zip(paths, roots, strict=True):
        graft = model.get_submodule(path)
        x = torch.randn(2, root.in_channels, 4, 5, dtype=torch.float64)
        with torch.no_grad():
            width = min(root.in_channels, root.out_channels)
            expected = F.conv2d(x, root.weight + update(graft, root, width), root.bias)
        near(graft(x), expected)
        near(graft.merged()(x), expected)


@over_both
def test_factors_are_shared_by_width_through_copies_and_files(kind: Any) -> None:
    shared = 3 if kind is FacTTK else 2
    for family, widths in (("vit", 1), ("swin", 2), ("convnext", 3), ("mixer", 1)):
        tuned = lowtide.apply(tiny(family), kind(rank=3))
        for one in (tuned, copy.deepcopy(tuned), tuned.float()):
            grafts = [m for m in one.modules() if hasattr(m, "V")]
            held = {id(p) for g in grafts for p in (g.U, g.V, getattr(g.core, "C", g.U))}
            assert len(held) == shared * widths
            names = [k.rpartition("/")[2] for k in one.adapter_state()]
            assert sum(n in ("U", "V", "core.C") for n in names) == shared * widths


@over_both
def test_only_channel_maps_are_touched(kind: Any) -> None:
    """What mixes tokens has no role of attention or the channel MLP."""
    state = lowtide.apply(tiny("mixer"), kind(rank=3)).adapter_state()
    touched = {k.partition("/")[0] for k in state if "core" in k}
    assert touched == {f"blocks.{i}.mlp_channels.fc{j}" for i in range(3) for j in (1, 2)}


def test_they_start_as_the_paper_says() -> None:
    torch.manual_seed(0)
    train = lowtide.apply(tiny("vit"), FacTTT(rank=16))
    tucker = lowtide.apply(tiny("vit"), FacTTK(rank=16)).backbone.blocks
    for graft, size in (
        (train.backbone.blocks[0].attn.qkv, 1),
        (train.backbone.blocks[0].mlp.fc1, 1),
        (train.backbone.blocks[0].mlp.fc2, 4),
    ):
        assert 0.95 < graft.core.weight.abs().max() * (16 * size) ** 0.5 <= 1
        assert 0.95 < graft.U.abs().max() * 32**0.5 <= 1
        assert graft.V.abs().max() == 0
    rows = torch.cat([m.core.P for b in tucker for m in (b.attn.qkv, b.mlp.fc1, b.mlp.fc2)])
    assert 0.95 < rows.abs().max() / (6 / (4 * 12 + 16)) ** 0.5 <= 1
    assert 0.95 < tucker[0].attn.qkv.core.C.abs().max() / (3**0.5 / 16) <= 1
    assert tucker[0].attn.qkv.V.abs().max() == 0


@over_both
def test_dropout_acts_between_the_core_and_v(kind: Any) -> None:
    model = tiny("vit")
    tuned = lowtide.apply(model, kind(rank=6, dropout=0.5, scale=2.0))
    stir(tuned)
    graft = model.blocks[0].attn.proj
    x = torch.randn(1, 1, 32, dtype=torch.float64)
    torch.manual_seed(3)
    y = graft.train()(x)
    torch.manual_seed(3)
    h = F.dropout(x @ graft.U.T @ middle(graft, 0, 1).T, 0.5)
    near(y, graft.base(x) + 2 * h @ graft.V.T)


@over_both
def test_with_another_method_on_the_same_maps(kind: Any) -> None:
    for methods in ((LoRA(), kind(rank=3), Bias()), (Bias(), kind(rank=3), LoRA())):
        tuned = lowtide.apply(tiny("vit"), *methods).eval()
        stir(tuned)
        y = tuned(x := images(tuned.backbone))
        near(tuned.merge_and_unload().eval()(x), y)


@over_both
def test_a_step_makes_no_tensor_of_a_weight_s_size(kind: Any) -> None:
    model = VisionTransformer(
        img_size=8, patch_size=8, embed_dim=256, depth=1, num_heads=4, num_classes=3
    )
    tuned = lowtide.apply(model, kind(rank=2)).train()
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    with Meter(tuned, optimizer) as meter:
        for _ in range(2):
            tuned(torch.randn(1, 3, 8, 8)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    weights = sum(t.nbytes for t in (*tuned.parameters(), *tuned.buffers()))
    assert meter.peak.peak_bytes - weights < model.blocks[0].attn.proj.root.weight.nbytes / 2


@over_both
def test_a_graft_keeps_its_input_and_rank_channels(kind: Any) -> None:
    model = tiny("vit")
    lowtide.apply(model, kind(rank=4, dropout=0.0)).train()
    graft = model.blocks[1].mlp.fc1
    x = torch.randn(3, 17, 32, dtype=torch.float64, requires_grad=True) * 1
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    core = graft.core().nbytes
    known = {p.untyped_storage().data_ptr() for p in graft.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = graft(x)
    tokens = 3 * 17 * 8
    assert y.requires_grad
    features = sorted(n for p, n in kept.items() if p not in known and n not in (core, core // 4))
    assert features == [tokens * 4, tokens * 16, x.nbytes]


@over_both
@pytest.mark.parametrize("family", ["resnet", "generic"])
def test_without_attention_or_mlp_there_is_no_place(kind: Any, family: str) -> None:
    with pytest.raises(Unsupported, match="fact_t[tk] needs attention or an MLP"):
        lowtide.apply(tiny(family), kind())


@over_both
def test_a_hidden_layer_that_is_no_multiple_is_refused(kind: Any) -> None:
    model = tiny("vit")
    model.blocks[1].mlp.fc1 = nn.Linear(32, 80).double()
    model.blocks[1].mlp.fc2 = nn.Linear(80, 32).double()
    with pytest.raises(Unsupported, match=r"fact_t[tk] .*blocks\.1\.mlp\.fc1 maps 32 .* to 80"):
        lowtide.apply(model, kind())


@over_both
@pytest.mark.parametrize("options", [{"rank": 0}, {"dropout": 1.0}], ids=str)
def test_wrong_options_are_refused(kind: Any, options: dict) -> None:
    with pytest.raises(ValueError, match="fact_t[tk] needs rank >= 1 and dropout"):
        kind(**options)

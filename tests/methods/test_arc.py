"""ARC against its equation written out, its published counts, and what is shared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from counts import on_meta, trained
from nets import backward, images, near, stir, tiny
from torch import Tensor

import lowtide
from lowtide.core.method import METHODS
from lowtide.errors import Unsupported
from lowtide.families import FAMILIES
from lowtide.methods.arc import ARC
from lowtide.methods.bias import Bias
from lowtide.methods.lora import LoRA
from lowtide.methods.s2a import S2A


@pytest.mark.parametrize(
    "backbone, options, count",
    [
        ("vit", {}, 96_432),
        ("vit", {"where": "attention"}, 48_216),
        ("vit", {"where": "mlp"}, 48_216),
        ("vit", {"rank": 8}, 2 * 8 * 768 + 2 * 12 * (8 + 768)),
        ("swin", {}, 218_464),
        ("swin", {"stream": True}, 218_464),
    ],
    ids=str,
)
def test_count(backbone: str, options: dict, count: int) -> None:
    assert trained(backbone, ARC(**options)) == count


def adapted(graft: Any, z: Tensor) -> Tensor:
    """z' position by position."""
    symmetric = graft.U @ torch.diag(graft.c) @ graft.U.T
    return z + z @ symmetric + graft.b


def test_the_equation_in_front_of_attention_and_mlp() -> None:
    model = tiny("vit").eval()
    roots = {p: model.get_submodule(p) for p in ("blocks.1.attn.qkv", "blocks.3.mlp.fc1")}
    tuned = lowtide.apply(model, ARC(rank=5)).eval()
    stir(tuned)
    for path, root in roots.items():
        graft = model.get_submodule(path)
        x = torch.randn(2, 5, 32, dtype=torch.float64)
        near(graft(x), root(adapted(graft, x)))
        near(graft.merged()(x), root(adapted(graft, x)))


def plain_stream(model: Any, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """A Swin block by block as the authors' code has it: x = ARC(x); x = x + mlp(norm2(x))."""
    z = model.patch_embed(x)
    for i, stage in enumerate(model.layers):
        z = stage.downsample(z)
        for j, block in enumerate(stage.blocks):
            u, name = state[f"./arc/U.{z.shape[-1]}"], f"layers-{i}-blocks-{j}"
            z = z + block._attn(block.norm1(z))
            z = z + z @ u @ torch.diag(state[f"./arc/c.{name}"]) @ u.T + state[f"./arc/b.{name}"]
            z = z + block.mlp(block.norm2(z))
    return model.head(model.norm(z))


@pytest.mark.parametrize("where", ["both", "mlp"])
def test_the_stream_is_adapted_between_attention_and_mlp(where: str) -> None:
    model = tiny("swin").eval()
    x = images(model)
    tuned = lowtide.apply(model, ARC(rank=5, where=where, stream=True)).eval()
    stir(tuned)
    y = tuned(x)
    near(y, plain_stream(model, tuned.adapter_state(), x))
    other = lowtide.apply(tiny("swin"), ARC(rank=5, where=where)).eval()
    shared, own = tuned.adapter_state(), other.adapter_state()
    for k, v in own.items():  # the same numbers where the paper puts them
        path, _, name = k.partition("/arc/")
        block = path.removesuffix(".mlp.fc1").replace(".", "-")
        if k in shared:
            v.copy_(shared[k])
        elif path.endswith("fc1"):
            v.copy_(shared[f"./arc/U.{len(v)}" if name == "U" else f"./arc/{name}.{block}"])
    assert (other(x) - y).abs().max() > 1e-2
    with pytest.raises(Unsupported, match="cannot merge arc: no map of the backbone stands on"):
        tuned.merge_and_unload()
    near(tuned(x), y)


def test_the_stream_recomputes_round_trips_and_starts_where_it_says() -> None:
    model = tiny("swin").eval()
    x = images(model)
    before = model(x)
    method = ARC(rank=5, stream=True, init="identity", dropout=0.0)
    tuned = lowtide.apply(model, method).eval()
    near(tuned(x), before)
    stir(tuned)
    twin = copy.deepcopy(tuned)
    twin.checkpointing = True
    near(backward(twin.train(), x), backward(tuned.train(), x))
    for p, q in zip(tuned.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            near(p.grad, q.grad)
    fresh = lowtide.apply(tiny("swin"), method).eval()
    fresh.load_adapter_state(tuned.adapter_state())
    near(fresh(x), tuned.eval()(x))
    torch.manual_seed(0)
    side = lowtide.apply(tiny("swin"), ARC(stream=True)).sides["arc"]
    drawn = torch.cat([*side.c.values()])
    assert 0.9 < drawn.abs().max() * (51 / 6) ** 0.5 <= 1
    assert not any(v.any() for v in side.b.values())


def test_the_stream_has_company_or_refuses_it() -> None:
    side, stream = METHODS["dtl"](start_block=1), ARC(rank=3, stream=True)
    inside = lowtide.apply(tiny("swin"), stream, side).eval()
    stir(inside)
    around = lowtide.apply(tiny("swin"), side, stream).eval()
    around.load_adapter_state(inside.adapter_state())
    x = images(inside.backbone)
    near(around(x), inside(x))
    for pair in ((stream, METHODS["vpt"]()), (METHODS["vpt"](), stream)):
        with pytest.raises(Unsupported, match="of (vpt and arc|arc and vpt) choose one"):
            lowtide.apply(tiny("swin"), *pair)
    for family in ("vit", "swin_v2"):
        with pytest.raises(Unsupported, match="arc's stream stands between attention and MLP"):
            lowtide.apply(tiny(family), stream)


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].halves])
def test_halves_are_the_block(family: str) -> None:
    model = tiny(family).eval()
    table, x = FAMILIES[family], images(model)
    z, context = table.stem(model, x), table.context(model, x.shape[2:])
    for path in table.chain(model):
        element, seen = model.get_submodule(path), []
        y = element(z, **context.get(path, {}))
        if hasattr(element, "mlp"):
            halves = table.halves(element, z, lambda h, seen=seen: seen.append(h) or h)
            near(halves, y, 1e-12)
            assert seen[0].shape == z.shape
        z = y


def test_the_projection_is_shared_by_role_and_width_through_copies_and_files() -> None:
    for tuned, sizes in (
        (lowtide.apply(tiny("vit"), ARC(rank=5)), [(32, 5)] * 2),
        (lowtide.apply(tiny("swin"), ARC(rank=5)), [(16, 5)] * 2 + [(32, 5)] * 2),
        (copy.deepcopy(lowtide.apply(tiny("vit"), ARC(rank=5))), [(32, 5)] * 2),
        (lowtide.apply(tiny("vit"), ARC(rank=5)).float(), [(32, 5)] * 2),
    ):
        state = tuned.adapter_state()
        assert sorted(v.shape for k, v in state.items() if k.endswith("/U")) == sizes
        grafts = [m for m in tuned.modules() if hasattr(m, "U")]
        assert len({id(g.U) for g in grafts}) == len(sizes)
        assert len({id(g.c) for g in grafts}) == len(grafts)
    qkv = {k for k in on_meta("vit", ARC()).adapter_state() if k.endswith("/U")}
    assert qkv == {"blocks.0.attn.qkv/arc/U", "blocks.0.mlp.fc1/arc/U"}


def test_it_starts_as_the_paper_says() -> None:
    torch.manual_seed(0)
    state = lowtide.apply(tiny("vit"), ARC(rank=40)).adapter_state()
    for key, value in state.items():
        if key.endswith("/U"):
            assert 0.9 < value.abs().max() / (6 / (32 + 40)) ** 0.5 <= 1
        if key.endswith("attn.qkv/arc/c") or key.endswith("/b"):
            assert value.abs().max() == 0
    c = torch.cat([v for k, v in state.items() if k.endswith("fc1/arc/c")])
    assert 0.9 < c.abs().max() / (6 / 41) ** 0.5 <= 1
    assert not ARC().identity and ARC(init="identity").identity
    assert ARC(where="attention").identity and not ARC(where="mlp").identity


@pytest.mark.parametrize("methods", [(LoRA(), ARC()), (ARC(), LoRA())], ids=["inner", "outer"])
def test_it_merges_with_a_method_below_or_above(methods: tuple) -> None:
    """Below it, the other's update reads z' as well; above it, z."""
    model = tiny("vit").eval()
    qkv = model.blocks[0].attn.qkv
    tuned = lowtide.apply(model, *methods).eval()
    stir(tuned)
    top = model.blocks[0].attn.qkv
    arc, lora = (top, top.base) if hasattr(top, "U") else (top.base, top)
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    read = adapted(arc, x) if arc is top else x
    q, v = (read @ (up.weight @ down.weight).T for up, down in zip(lora.up, lora.down, strict=True))
    expected = qkv(adapted(arc, x)) + torch.cat([q, torch.zeros_like(q), v], -1)
    near(top(x), expected)
    y = tuned(z := images(model))
    merged = tuned.merge_and_unload().eval()
    near(merged.blocks[0].attn.qkv(x), expected)
    near(merged(z), y)


def test_on_what_cannot_be_folded_it_cannot_either() -> None:
    tuned = lowtide.apply(tiny("vit"), S2A(side=False), ARC())
    unfolded = lowtide.merge(tuned)[1]
    assert "arc at blocks.0.attn.qkv: what it stands in front of cannot be folded" in unfolded
    assert not [line for line in unfolded if "fc1" in line]


def test_a_map_without_a_bias_gets_no_shift_and_merges() -> None:
    model = tiny("vit").eval()
    for block in model.blocks:
        block.attn.qkv.bias = None
    tuned = lowtide.apply(model, ARC(rank=3)).eval()
    stir(tuned)
    assert model.blocks[0].attn.qkv.b is None and model.blocks[0].mlp.fc1.b is not None
    y = tuned(x := images(model))
    merged = tuned.merge_and_unload().eval()
    near(merged(x), y)
    assert merged.blocks[0].attn.qkv.bias is None


def test_channels_may_come_first() -> None:
    model = tiny("as_mlp").eval()
    path = next(p for p, m in model.named_modules() if p.endswith("mlp.fc1"))
    fc1 = model.get_submodule(path)
    tuned = lowtide.apply(model, ARC(where="mlp", rank=3)).eval()
    stir(tuned)
    x = torch.randn(2, fc1.in_channels, 4, 5, dtype=torch.float64)
    expected = fc1(adapted(graft := model.get_submodule(path), x.movedim(1, -1)).movedim(-1, 1))
    near(graft(x), expected)
    near(graft.merged()(x), expected)


def test_dropout_acts_on_the_inner_channels_in_training_only() -> None:
    model = tiny("vit")
    tuned = lowtide.apply(model, ARC(rank=6, dropout=0.5))
    stir(tuned)
    graft = model.blocks[0].mlp.fc1
    graft.base = torch.nn.Identity()
    x = torch.randn(1, 1, 32, dtype=torch.float64)
    torch.manual_seed(3)
    y = graft.train()(x)
    torch.manual_seed(3)
    near(y, x + F.dropout(x @ graft.U * graft.c, 0.5) @ graft.U.T + graft.b)
    near(graft.eval()(x), adapted(graft, x))


def test_a_graft_keeps_its_input_and_three_times_the_rank() -> None:
    model = tiny("vit")
    lowtide.apply(model, ARC(rank=4, dropout=0.1)).train()
    graft = model.blocks[1].attn.qkv
    x = torch.randn(2, 17, 32, dtype=torch.float64, requires_grad=True) * 1
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    known = {p.untyped_storage().data_ptr() for p in graft.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = graft(x)
    sizes = sorted(n for pointer, n in kept.items() if pointer not in known)
    inner = 2 * 17 * 4 * 8
    assert y.requires_grad and sizes == [inner, inner, inner, x.nbytes]


@pytest.mark.parametrize("family", ["convnext", "resnet", "mixer", "generic"])
def test_without_attention_there_is_no_place(family: str) -> None:
    with pytest.raises(Unsupported, match="arc needs maps of role qkv"):
        lowtide.apply(tiny(family), ARC())


def test_the_mlp_alone_is_adapted_on_request() -> None:
    tuned = lowtide.apply(tiny("convnext"), ARC(where="mlp"), Bias()).eval()
    stir(tuned)
    y = tuned(x := images(tuned.backbone))
    near(tuned.merge_and_unload().eval()(x), y)


@pytest.mark.parametrize("options", [{"rank": 0}, {"dropout": 1.0}, {"where": "head"}], ids=str)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="arc needs rank >= 1, dropout"):
        ARC(**options)

"""Adapters against their equation written out, their counts, their places and what they keep."""

from __future__ import annotations

import pytest
import torch
from counts import on_meta, trained
from nets import FEW, TABLES, backward, images, near, stir, tiny
from torch import Tensor, nn

import lowtide
from lowtide.core.graft import Graft
from lowtide.core.site import Layout, Role, Site
from lowtide.errors import Unsupported
from lowtide.families import measure
from lowtide.methods.adapter import Adapter, AdapterGraft
from lowtide.methods.bias import Bias
from lowtide.methods.lora import LoRA

PHI = {
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x / (1 + (-x).exp()),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
}


@pytest.mark.parametrize(
    "backbone, method, count",
    [
        ("vit", Adapter(rank=8), 156_768),
        ("vit", Adapter(rank=12), 230_544),
        ("vit", Adapter(rank=96), 1_779_840),
        ("vit", Adapter(rank=96, positions="both"), 3_559_680),
        ("swin", Adapter(rank=8), 17 * 12_032 + 24 * 8),
        ("convnext", Adapter(rank=8), 17 * 18_048 + 36 * 8),
    ],
    ids=str,
)
def test_count(backbone: str, method: Adapter, count: int) -> None:
    assert trained(backbone, method) == count


@pytest.mark.parametrize("family", sorted(TABLES))
def test_a_channel_mlp_s_channels_are_where_its_site_says(family: str) -> None:
    """ConvNeXt's blocks are channels first and this one's MLPs are not; AS-MLP's are."""
    model = tiny(family)
    for s in measure(model, TABLES[family]).of(Role.MLP):
        fc2 = model.get_submodule(s.path).fc2
        assert s.dim == (fc2.out_channels if hasattr(fc2, "out_channels") else fc2.out_features)


@pytest.mark.parametrize("activation", sorted(PHI))
@pytest.mark.parametrize(
    "family, path, shape",
    [
        ("vit", "blocks.2.mlp", (2, 5, 32)),
        ("convnext", "stages.1.blocks.0.mlp", (2, 3, 4, 32)),
        ("as_mlp", "stages.0.blocks.0.mlp", (2, 24, 3, 4)),
    ],
)
def test_the_equation(family: str, path: str, shape: tuple[int, ...], activation: str) -> None:
    model = tiny(family).eval()
    mlp = model.get_submodule(path)
    tuned = lowtide.apply(model, Adapter(rank=3, activation=activation)).eval()
    stir(tuned)
    state = tuned.adapter_state()
    down, b, up, b2 = (
        state[f"{path}/adapter/{n}"].flatten(1 if n.endswith("weight") else 0)
        for n in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    x = torch.randn(shape, dtype=torch.float64)
    y = mlp(x)
    axis = 1 if family == "as_mlp" else -1
    rows = y.movedim(axis, -1)
    expected = rows + PHI[activation](rows @ down.T + b) @ up.T + b2
    near(model.get_submodule(path)(x), expected.movedim(-1, axis))


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_both_positions_follow_attention_and_the_mlp(family: str) -> None:
    """Attention is told more than its input, such as the mask of shifted windows."""
    model = tiny(family).eval()
    x = images(model)
    before = model(x)
    tuned = lowtide.apply(model, Adapter(positions="both")).eval()
    near(tuned(x), before)
    places = {k.partition("/")[0] for k in tuned.adapter_state() if "/adapter/" in k}
    blocks = [s.path for s in tuned.sites.of(Role.BLOCK)]
    assert places == {f"{b}.{part}" for b in blocks for part in ("attn", "mlp")}
    stir(tuned)
    backward(tuned, x)
    assert all(p.grad.abs().max() > 0 for p in tuned.parameters() if p.requires_grad)


def test_one_per_block_behind_the_mlp() -> None:
    tuned = on_meta("swin", Adapter())
    places = {k.partition("/")[0] for k in tuned.adapter_state() if "/adapter/" in k}
    assert places == {f"{s.path}.mlp" for s in tuned.sites.of(Role.BLOCK)} and len(places) == 24


def test_it_starts_alive() -> None:
    """W_down is drawn and W_up gets a gradient at once; were both zero, neither would ever move."""
    model = tiny("vit")
    tuned = lowtide.apply(model, Adapter(), num_classes=FEW).train()
    state = tuned.adapter_state()
    bound = 32**-0.5
    downs = torch.cat([v.flatten() for k, v in state.items() if k.endswith("down.weight")])
    assert 0.95 * bound < downs.abs().max() <= bound and abs(downs.mean()) < 0.1 * bound
    assert not any(v.abs().max() for k, v in state.items() if k.endswith(("up.weight", "bias"))
                   and "/adapter/" in k)  # fmt: skip
    backward(tuned, images(model))
    for block in model.blocks:
        assert block.mlp.up.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("activation, inside", [("gelu", 2), ("relu", 1)])
def test_it_keeps_its_input_and_the_bottleneck(activation: str, inside: int) -> None:
    batch, n, c, r = 2, 5, 32, 3
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter) and t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.nbytes
        return t

    shape = (1, n, c)
    site = Site("mlp", Role.MLP, 0, Layout.LAST, shape, shape, ())
    graft = AdapterGraft(nn.Identity(), site, Adapter(rank=r, activation=activation)).double()
    weights = {p.untyped_storage().data_ptr() for p in graft.parameters()}
    x = torch.randn(batch, n, c, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        graft(x)
    assert sorted(kept.values()) == sorted([8 * batch * n * c] + inside * [8 * batch * n * r])


@pytest.mark.parametrize("inside", [Bias(), LoRA(roles=(Role.FC1,))], ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_other_methods_reach_inside_the_mlp_it_stands_around(inside: Bias, first: bool) -> None:
    model = tiny("vit").eval()
    modules, x = dict(model.named_modules()), images(model)
    before = model(x)
    methods = (inside, Adapter()) if first else (Adapter(), inside)
    tuned = lowtide.apply(model, *methods).eval()
    near(tuned(x), before)
    stir(tuned)
    backward(tuned, x)
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
    after, state = tuned(x), {k: v.clone() for k, v in tuned.adapter_state().items()}
    with tuned.disable_adapter():
        assert dict(model.named_modules()) == modules
        near(tuned(x), before)
    near(tuned(x), after)
    other = lowtide.apply(tiny("vit"), *methods).eval()
    other.load_adapter_state(state)
    near(other(x), after)
    mlp = model.blocks[0].mlp
    assert type(mlp) is AdapterGraft and isinstance(mlp.base.fc1, Graft) is isinstance(inside, LoRA)


def test_refusals() -> None:
    for options, said in (
        ({"rank": 0}, "rank >= 1"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\)"),
        ({"positions": "attn"}, "positions from mlp, both, not 'attn'"),
        ({"activation": "tanh"}, "activation from gelu, relu, silu, not 'tanh'"),
    ):
        with pytest.raises(ValueError, match=f"adapter needs .*{said}"):
            Adapter(**options)
    with pytest.raises(Unsupported, match="adapter needs sites of role mlp"):
        lowtide.apply(tiny("resnet"), Adapter())
    with pytest.raises(Unsupported, match="adapter needs sites of role attn"):
        lowtide.apply(tiny("mixer"), Adapter(positions="both"))

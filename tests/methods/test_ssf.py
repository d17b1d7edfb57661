"""SSF against its equation written out, its published counts, its folding rules."""

from __future__ import annotations

import pytest
import torch
from counts import on_meta, trained
from nets import images, near, stir, tiny

import lowtide.tune
from lowtide.errors import Unsupported
from lowtide.methods.lora import LoRA
from lowtide.methods.ssf import SSF


@pytest.mark.parametrize(
    "backbone, count", [("vit", 205_824), ("swin", 274_432), ("convnext", 260_608)]
)
def test_count(backbone: str, count: int) -> None:
    assert trained(backbone, SSF()) == count


def test_places_on_a_vit() -> None:
    """Patch embedding, LN1, qkv, proj, LN2, fc1, fc2, final norm: 12 * 6 + 2 pairs."""
    tuned = on_meta("vit", SSF())
    paths = [k.partition("/")[0] for k in tuned.adapter_state() if k.endswith("gamma")]
    assert len(paths) == 74
    block = {"norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"}
    assert set(paths) == {"patch_embed.proj", "norm"} | {
        f"blocks.{i}.{m}" for i in range(12) for m in block
    }


def test_the_equation_and_its_fold() -> None:
    model = tiny("convnext")
    dw, fc1 = model.stages[0].blocks[0].conv_dw, model.stages[0].blocks[0].mlp.fc1
    tuned = lowtide.tune.apply(model, SSF()).eval()
    stir(tuned)
    block, state = model.stages[0].blocks[0], tuned.adapter_state()
    for module, root, x in (
        (block.conv_dw, dw, torch.randn(2, 24, 9, 9)),
        (block.mlp.fc1, fc1, torch.randn(2, 3, 24)),
    ):
        path = next(n for n, m in model.named_modules() if m is module)
        gamma, beta = state[f"{path}/ssf/gamma"], state[f"{path}/ssf/beta"]
        x = x.double()
        near(module(x), gamma * root(x) + beta)
        near(module.merged()(x), gamma * root(x) + beta)


def test_it_starts_as_the_paper_draws_or_at_the_identity() -> None:
    torch.manual_seed(1)
    model = tiny("vit")
    state = lowtide.tune.apply(model, SSF()).adapter_state()
    gammas = torch.cat([v.flatten() for k, v in state.items() if k.endswith("gamma")])
    betas = torch.cat([v.flatten() for k, v in state.items() if k.endswith("beta")])
    for drawn, centre in ((gammas, 1), (betas, 0)):
        assert abs(drawn.mean() - centre) < 0.002 and abs(drawn.std() - 0.02) < 0.002
    model = tiny("vit").eval()
    x = images(model)
    before = model(x)
    near(lowtide.tune.apply(model, SSF(init="identity")).eval()(x), before)


def test_inner_and_outer_grafts_compose_in_the_order_given() -> None:
    """ssf then lora: gamma (W x) + beta + s B A x; lora then ssf scales the update as well."""
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    for first, second in ((SSF(), LoRA()), (LoRA(), SSF())):
        model = tiny("vit").eval()
        qkv = model.blocks[0].attn.qkv
        tuned = lowtide.tune.apply(model, first, second).eval()
        stir(tuned)
        s = {k.removeprefix("blocks.0.attn.qkv/"): v for k, v in tuned.adapter_state().items()}
        a, b = ([s[f"lora/{f}.{i}.weight"] for i in (0, 1)] for f in ("down", "up"))
        update = torch.cat([x @ a[0].T @ b[0].T, torch.zeros(2, 5, 32), x @ a[1].T @ b[1].T], -1)
        gamma, beta = s["ssf/gamma"], s["ssf/beta"]
        if isinstance(first, SSF):
            near(model.blocks[0].attn.qkv(x), gamma * qkv(x) + beta + update)
        else:
            near(model.blocks[0].attn.qkv(x), gamma * (qkv(x) + update) + beta)


def test_convnext_s_last_one_cannot_be_folded_and_says_why() -> None:
    tuned = lowtide.tune.apply(tiny("convnext"), SSF())
    with pytest.raises(Unsupported, match="norm_pre: what it scales is a sum"):
        tuned.merge_and_unload()


@pytest.mark.parametrize(
    "method, count",
    [
        (SSF(layers=2), 36_864),
        (SSF(layers=4), 70_656),
        (SSF(layers=8), 138_240),
        (SSF(without=("mlp",)), 113_664),
        (SSF(without=("attention",)), 132_096),
        (SSF(without=("embedding",)), 204_288),
        (SSF(without=("norm",)), 168_960),
        (SSF(scale="none"), 102_912),
        (SSF(shift=False), 102_912),
        (SSF(scale="scalar"), 102_912 + 74),
    ],
    ids=str,
)
def test_the_paper_s_ablations_have_its_counts(method: SSF, count: int) -> None:
    """Table 6, in millions with a classifier of 100: .11 .15 .22 .19 .21 .28 .25 .18 .18 .18."""
    assert trained("vit", method) == count


@pytest.mark.parametrize(
    "options", [{"scale": "none"}, {"shift": False}, {"scale": "scalar"}], ids=str
)
@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_ablations_merge(family: str, options: dict) -> None:
    model = tiny(family).eval()
    x = images(model)
    tuned = lowtide.tune.apply(model, SSF(**options)).eval()
    stir(tuned)
    expected = tuned(x)
    near(tuned.merge_and_unload().eval()(x), expected)


def test_other_starts() -> None:
    torch.manual_seed(1)
    for init, centre, most in (
        ("uniform", 1, 0.0347),
        ("trunc_normal", 1, 0.0401),
        ("random", 0, 1),
    ):
        state = lowtide.tune.apply(tiny("vit"), SSF(init=init)).adapter_state()
        gammas = torch.cat([v.flatten() for k, v in state.items() if k.endswith("gamma")])
        assert abs(gammas.mean() - centre) < 0.002 and abs(gammas.std() - 0.02) < 0.003
        assert (gammas - centre).abs().max() < most

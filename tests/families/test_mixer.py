"""One table for four kinds of block: what stands where, and what acts on the transposed map."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from nets import FEW, backward, images, near, stir, wake
from timm.layers import GatedMlp, GluMlp
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from torch import Tensor, nn

import lowtide
from lowtide.core.method import Method
from lowtide.core.site import Role, Sites
from lowtide.families import family_of, measure
from lowtide.methods.bias import Bias
from lowtide.methods.lora import LoRA
from lowtide.methods.s2a import S2A
from lowtide.methods.ssf import SSF
from lowtide.versions import on_meta

C, N = 32, 16
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "mixer": MlpMixer,
    "gmixer": partial(MlpMixer, mlp_ratio=(1, 4), mlp_layer=GluMlp, act_layer=nn.SiLU),
    "resmlp": partial(MlpMixer, mlp_ratio=4, block_layer=ResBlock, norm_layer=Affine),
    "gmlp": partial(MlpMixer, mlp_ratio=4, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp),
}
CHANNELS = {
    Role.MLP: {"mlp_channels"},
    Role.FC1: {"mlp_channels.fc1"},
    Role.ACT: {"mlp_channels.act"},
    Role.FC2: {"mlp_channels.fc2"},
}
TOKENS = {"mlp_tokens.fc1", "mlp_tokens.fc2"}
ROLES = {
    "mixer": {Role.NORM: {"norm1", "norm2"}, Role.LINEAR: TOKENS},
    "gmixer": {Role.NORM: {"norm1", "norm2"}, Role.LINEAR: TOKENS},
    "resmlp": {Role.OTHER: {"norm1", "norm2"}, Role.LINEAR: {"linear_tokens"}},
    "gmlp": {
        Role.NORM: {"norm", "mlp_channels.gate.norm"},
        Role.LINEAR: {"mlp_channels.gate.proj"},
    },
}
REAL = ("mixer_b16_224", "gmixer_24_224", "resmlp_12_224", "resmlp_big_24_224", "gmlp_s16_224")


def member(kind: str) -> nn.Module:
    model = BLOCKS[kind](img_size=64, patch_size=16, num_blocks=2, embed_dim=C, num_classes=FEW)
    model.pretrained_cfg = {"input_size": (3, 64, 64)}
    return wake(model.double()).eval()


def sites(model: nn.Module) -> Sites:
    family = family_of(model)
    assert family.name == "mixer"
    return measure(model, family)


@pytest.mark.parametrize("kind", BLOCKS)
def test_steps_compose_to_the_forward(kind: str) -> None:
    model = member(kind)
    family, x = family_of(model), images(model)
    with torch.no_grad():
        y = model(x)
        assert y.std(0).mean() > 0.01
        z = family.stem(model, x)
        for path in family.chain(model):
            z = model.get_submodule(path)(z)
        z = model.forward_head(family.finish(model, z), pre_logits=True)
        torch.testing.assert_close(model.get_classifier()(z), y, rtol=0, atol=0)


@pytest.mark.parametrize("kind", BLOCKS)
def test_roles(kind: str) -> None:
    found: dict[Role, set[str]] = {}
    for s in sites(member(kind)):
        if s.depth == 1 and s.role is not Role.BLOCK:
            found.setdefault(s.role, set()).add(s.path.removeprefix("blocks.1."))
    assert found == CHANNELS | ROLES[kind]


@pytest.mark.parametrize("kind", BLOCKS)
def test_facts_of_channel_maps_and_of_token_maps(kind: str) -> None:
    found = sites(member(kind))
    assert all(s.out_shape == (1, N, C) for s in found.of(Role.BLOCK, Role.MLP))
    for fc1, fc2 in zip(found.of(Role.FC1), found.of(Role.FC2), strict=True):
        assert (fc1.in_dim, fc2.dim, fc1.tokens, fc2.tokens) == (C, C, N, N)
        assert fc2.in_dim == fc1.dim // (2 if kind[0] == "g" else 1)
    first, last = found.of(Role.LINEAR)[0], found.of(Role.LINEAR)[-1]
    assert (first.in_dim, last.dim) == (N, N)
    assert first.in_shape[1] == (2 * C if kind == "gmlp" else C)


@pytest.mark.parametrize("name", REAL)
def test_sites_cover_real_architectures(name: str) -> None:
    with on_meta():
        model = timm.create_model(name, num_classes=FEW)
    found = sites(model)
    names = {n for n, _ in model.named_parameters()}
    assert {f"{s.path}.{p}" for s in found for p in s.params} == names
    loose = found.of(Role.OTHER)
    assert {type(model.get_submodule(s.path)) for s in loose} <= {Affine}
    assert bool(loose) == name.startswith("resmlp")
    for method in (Bias(), LoRA(), SSF(), S2A()):
        with on_meta():
            lowtide.apply(timm.create_model(name, num_classes=FEW), method)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("method", [Bias(), LoRA(rank=3), SSF()], ids=lambda m: type(m).__name__)
def test_merged_equals_tuned(kind: str, method: Method) -> None:
    model = member(kind)
    x = images(model)
    before = model(x)
    tuned = lowtide.apply(model, method).eval()
    stir(tuned)
    expected = tuned(x)
    assert (expected - before).abs().max() > 1e-3
    near(tuned.merge_and_unload().eval()(x), expected)


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_side_branch_sees_the_patch_grid(kind: str) -> None:
    tuned = lowtide.apply(member(kind), S2A(bias=False))
    assert {b.grid for b in tuned.sides["s2a"].branches.values()} == {(4, 4)}
    stir(tuned)
    backward(tuned, images(tuned.backbone))
    assert all(p.grad.abs().max() > 1e-9 for p in tuned.parameters() if p.requires_grad)


def mixed(x: Tensor, w: list[Tensor], b: list[Tensor]) -> Tensor:
    """A token MLP written over positions: h_kc = gelu(sum_n w_kn x_nc + b_k)."""
    h = torch.einsum("kn,bnc->bkc", w[0], x) + b[0][:, None]
    return torch.einsum("nk,bkc->bnc", w[1], nn.functional.gelu(h)) + b[1][:, None]


@pytest.mark.parametrize("method", [LoRA(rank=3), SSF()], ids=lambda m: type(m).__name__)
def test_on_the_token_mlp_methods_act_along_positions(method: Method) -> None:
    model = member("mixer")
    mlp = model.blocks[1].mlp_tokens
    w = [mlp.fc1.weight, mlp.fc2.weight]
    b = [mlp.fc1.bias, mlp.fc2.bias]
    tuned = lowtide.apply(model, method).eval()
    stir(tuned)
    at = tuned.adapter_state()
    for i in (0, 1):
        path = f"blocks.1.mlp_tokens.fc{i + 1}"
        if isinstance(method, LoRA):
            down, up = (at[f"{path}/lora/{part}.0.weight"] for part in ("down", "up"))
            w[i] = w[i] + up @ down
        else:
            gamma, beta = at[f"{path}/ssf/gamma"], at[f"{path}/ssf/beta"]
            w[i], b[i] = gamma[:, None] * w[i], gamma * b[i] + beta
    x = torch.randn(2, N, C, dtype=torch.float64)
    near(model.blocks[1].mlp_tokens(x.mT).mT, mixed(x, w, b))


def test_methods_of_the_channel_mlp_leave_the_tokens_alone() -> None:
    tuned = lowtide.apply(member("mixer"), LoRA(roles=(Role.FC1, Role.FC2)))
    paths = {k.partition("/")[0] for k in tuned.adapter_state() if "/lora/" in k}
    assert paths == {f"blocks.{i}.mlp_channels.fc{j}" for i in (0, 1) for j in (1, 2)}


@pytest.mark.parametrize("kind, seen", [("mixer", False), ("resmlp", True)])
def test_a_shift_per_position_is_seen_only_where_no_norm_removes_it(kind: str, seen: bool) -> None:
    """What a token MLP adds to all channels of a position alike, every later LayerNorm removes."""
    tuned = lowtide.apply(member(kind), Bias())
    backward(tuned, images(tuned.backbone))
    mixes = tuned.backbone.blocks[0]
    last = mixes.linear_tokens if kind == "resmlp" else mixes.mlp_tokens.fc2
    assert bool(last.bias.grad.abs().max() > 1e-9) == seen


def test_counts_of_biases_and_scales() -> None:
    """Mixer-B/16, 12 blocks of C = 768, N = 196, hidden 384 and 3072: written out by hand."""
    with on_meta():
        model = timm.create_model("mixer_b16_224", num_classes=FEW)
        head = 769 * FEW
        bias = lowtide.apply(model, Bias()).trainable_counts()[0] - head
        ssf = lowtide.apply(
            timm.create_model("mixer_b16_224", num_classes=FEW), SSF()
        ).trainable_counts()[0]
    assert bias == 12 * (2 * 768 + 384 + 196 + 3072 + 768) + 2 * 768
    assert ssf - head == 2 * bias

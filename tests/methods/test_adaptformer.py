"""AdaptFormer against its equation written out, its counts, its start and what it keeps."""

from __future__ import annotations

import pytest
import torch
from counts import trained
from nets import FEW, backward, images, near, stir, tiny
from torch import Tensor, nn

import lowtide
from lowtide.core.site import Layout, Role, Site
from lowtide.errors import Unsupported
from lowtide.methods.adaptformer import AdaptFormer, AdaptFormerGraft


@pytest.mark.parametrize(
    "backbone, rank, count",
    [
        ("vit", 64, 1_189_632),
        ("vit", 8, 156_768),
        ("swin", 64, 129 * 12_032 + 24 * 64),
        ("convnext", 64, 129 * 18_048 + 36 * 64),
    ],
)
def test_count(backbone: str, rank: int, count: int) -> None:
    assert trained(backbone, AdaptFormer(rank=rank)) == count


@pytest.mark.parametrize(
    "family, path, shape",
    [
        ("vit", "blocks.2.mlp", (2, 5, 32)),
        ("swin", "layers.1.blocks.0.mlp", (2, 5, 32)),
        ("convnext", "stages.1.blocks.0.mlp", (2, 3, 4, 32)),
        ("as_mlp", "stages.0.blocks.0.mlp", (2, 24, 3, 4)),
        ("mixer", "blocks.1.mlp_channels", (2, 16, 32)),
    ],
)
def test_the_equation(family: str, path: str, shape: tuple[int, ...]) -> None:
    """Beside the MLP, not behind it: the bottleneck reads the MLP's input."""
    model = tiny(family).eval()
    mlp = model.get_submodule(path)
    tuned = lowtide.apply(model, AdaptFormer(rank=3, scale=0.7)).eval()
    stir(tuned)
    state = tuned.adapter_state()
    down, b, up, b2 = (
        state[f"{path}/adaptformer/{n}"].flatten(1 if n.endswith("weight") else 0)
        for n in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    z = torch.randn(shape, dtype=torch.float64)
    axis = 1 if family == "as_mlp" else -1
    rows = z.movedim(axis, -1)
    update = 0.7 * ((rows @ down.T + b).clamp(min=0) @ up.T + b2)
    near(model.get_submodule(path)(z), mlp(z) + update.movedim(-1, axis))


def test_it_reads_what_the_norm_gives() -> None:
    model = tiny("vit").eval()
    tuned = lowtide.apply(model, AdaptFormer()).eval()
    seen: dict[str, Tensor] = {}
    block = model.blocks[1]
    block.norm2.register_forward_hook(lambda m, a, y: seen.update(norm=y))
    block.mlp.down.register_forward_pre_hook(lambda m, a: seen.update(down=a[0]))
    tuned(images(model))
    assert seen["norm"] is seen["down"]


def test_dropout_is_on_the_hidden_channels_in_training_only() -> None:
    shape = (1, 50, 8)
    site = Site("mlp", Role.MLP, 0, Layout.LAST, shape, shape, ())
    graft = AdaptFormerGraft(nn.Identity(), site, AdaptFormer(rank=40, dropout=0.5)).train()
    nn.init.ones_(graft.down.bias)
    nn.init.zeros_(graft.down.weight)
    hidden: list[Tensor] = []
    graft.up.register_forward_pre_hook(lambda m, a: hidden.append(a[0]))
    graft(torch.randn(shape))
    graft.eval()(torch.randn(shape))
    assert abs((hidden[0] == 0).float().mean() - 0.5) < 0.05
    assert set(hidden[0].unique().tolist()) == {0.0, 2.0} and (hidden[1] == 1).all()


def test_it_starts_at_the_backbone_and_alive() -> None:
    model = tiny("vit").eval()
    x = images(model)
    before = model(x)
    tuned = lowtide.apply(model, AdaptFormer()).eval()
    near(tuned(x), before)
    state = tuned.adapter_state()
    downs = torch.cat([v.flatten() for k, v in state.items() if k.endswith("down.weight")])
    bound = 32**-0.5  # sqrt(6 / ((1 + 5) C))
    assert 0.99 * bound < downs.abs().max() <= bound
    assert abs(downs.std() - bound / 3**0.5) < 0.02 * bound
    backward(tuned, x)
    assert all(b.mlp.up.weight.grad.abs().max() > 1e-6 for b in model.blocks)


def test_it_keeps_the_mlp_s_input_and_the_bottleneck() -> None:
    """Per block 1 u and `rank` channels more than the frozen backbone on the gradient path."""
    kept: dict[str, int] = {}
    batch, tokens, c, r = 3, 17, 32, 6
    for name in ("frozen", "adaptformer"):
        model = tiny("vit")
        method = AdaptFormer(rank=r, dropout=0.0)
        tuned = lowtide.apply(model, method, num_classes=FEW).train()
        storages: dict[int, int] = {}
        weights = {p.untyped_storage().data_ptr() for p in tuned.parameters()}

        def keep(t: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        if name == "frozen":
            for block in model.blocks:
                block.mlp = block.mlp.base
        x = images(model, batch).requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            tuned(x)
        kept[name] = sum(n for at, n in storages.items() if at not in weights)
    assert kept["adaptformer"] - kept["frozen"] == 4 * 8 * batch * tokens * (c + r)


def test_refusals() -> None:
    for options in ({"rank": 0}, {"scale": 0.0}, {"dropout": -0.1}):
        with pytest.raises(ValueError, match="adaptformer needs rank >= 1"):
            AdaptFormer(**options)
    for family in ("resnet", "generic"):
        with pytest.raises(Unsupported, match="adaptformer needs a channel MLP"):
            lowtide.apply(tiny(family), AdaptFormer())

"""Conv-Adapter against its equation with the windows written out, its counts, places and memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from counts import on_meta, trained
from nets import FEW, backward, images, near, stir, tiny
from torch import Tensor, nn

import lowtide
from lowtide.core.site import Layout, Role, Site
from lowtide.errors import Unsupported
from lowtide.families import FAMILIES, measure
from lowtide.methods.conv_adapter import ConvAdapter, ConvAdapterGraft

NORMS = {"convnext": 2 * 19_072, "swin": 2 * 28_800}


@pytest.mark.parametrize(
    "backbone, method, count",
    [
        ("convnext", ConvAdapter(reduction=16), 1_626_144),
        ("convnext", ConvAdapter(reduction=8), 2_324_672),
        ("convnext", ConvAdapter(reduction=4), 3_721_728),
        ("convnext", ConvAdapter(reduction=16, norms=True), 1_626_144 + NORMS["convnext"]),
        ("resnet50", ConvAdapter(reduction=8), 199_192),
        ("resnet50", ConvAdapter(reduction=4), 356_848),
        ("swin", ConvAdapter(reduction=8), 1_487_584),
        ("swin", ConvAdapter(reduction=8, norms=True), 1_487_584 + NORMS["swin"]),
    ],
    ids=str,
)
def test_count(backbone: str, method: ConvAdapter, count: int) -> None:
    assert trained(backbone, method) == count


PLACES = {
    "convnext_base": [f"stages.{i}.blocks.{j}.conv_dw" for i, n in enumerate((3, 3, 27, 3))
                      for j in range(n)] + [f"stages.{i}.downsample.1" for i in (1, 2, 3)],
    "resnet50": [f"layer{i}.{j}.conv2" for i, n in enumerate((3, 4, 6, 3), 1) for j in range(n)],
    "resnet18": [f"layer{i}.{j}.conv1" for i in (1, 2, 3, 4) for j in range(2)],
    "swin_tiny_patch4_window7_224": [f"layers.{i}.blocks.{j}.attn"
                                     for i, n in enumerate((2, 2, 6, 2)) for j in range(n)],
}  # fmt: skip


@pytest.mark.parametrize("backbone", PLACES)
def test_one_beside_what_mixes_space_in_each_block(backbone: str) -> None:
    state = on_meta(backbone, ConvAdapter()).adapter_state()
    assert {k.partition("/")[0] for k in state if k.endswith("alpha")} == set(PLACES[backbone])


def plain(state: dict[str, Tensor], x: Tensor, stride: int, padding: int, phi: object) -> Tensor:
    """Every output position of every filter as a sum over the window it reads."""
    w, b = state["grouped.weight"], state["grouped.bias"]
    c, a, k, _ = w.shape
    x = F.pad(x, (padding,) * 4)
    h, v = ((n - k) // stride + 1 for n in x.shape[2:])
    hidden = x.new_zeros(len(x), c, h, v)
    for i in range(h):
        for j in range(v):
            window = x[:, :, i * stride : i * stride + k, j * stride : j * stride + k]
            for f in range(c):  # filter f sees its own a channels
                seen = window[:, f * a : (f + 1) * a]
                hidden[:, f, i, j] = (seen * w[f]).sum((1, 2, 3)) + b[f]
    y = torch.einsum("oc,bchv->bohv", state["pointwise.weight"].flatten(1), phi(hidden))
    return state["alpha"].view(-1, 1, 1) * (y + state["pointwise.bias"].view(-1, 1, 1))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


@pytest.mark.parametrize(
    "family, path, stride, padding, activation",
    [
        ("convnext", "stages.2.blocks.1.conv_dw", 1, 3, "gelu"),
        ("convnext", "stages.1.downsample.1", 2, 0, "gelu"),
        ("resnet", "layer1.0.conv1", 1, 1, "relu"),
        ("resnet", "layer2.0.conv1", 2, 1, "gelu"),
    ],
)
def test_the_equation(family: str, path: str, stride: int, padding: int, activation: str) -> None:
    model = tiny(family).eval()
    conv = model.get_submodule(path)
    tuned = lowtide.apply(model, ConvAdapter(activation=activation)).eval()
    stir(tuned)
    at = f"{path}/conv_adapter/"
    state = {k.removeprefix(at): v for k, v in tuned.adapter_state().items() if k.startswith(at)}
    x = torch.randn(2, conv.in_channels, 8, 6, dtype=torch.float64)
    phi = gelu if activation == "gelu" else (lambda h: h.clamp(min=0))
    near(model.get_submodule(path)(x), conv(x) + plain(state, x, stride, padding, phi))


def test_the_equation_in_windows() -> None:
    """Each window of each image is a small image of its own, with zeros around."""
    path = "layers.0.blocks.1.attn"
    model = tiny("swin").eval()
    attn = model.get_submodule(path)
    tuned = lowtide.apply(model, ConvAdapter()).eval()
    stir(tuned)
    at = f"{path}/conv_adapter/"
    state = {k.removeprefix(at): v for k, v in tuned.adapter_state().items() if k.startswith(at)}
    mask = model.get_submodule("layers.0.blocks.1").attn_mask
    x = torch.randn(2 * len(mask), 16, 16, dtype=torch.float64)
    square = x.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    update = plain(state, square, 1, 3, gelu).permute(0, 2, 3, 1).flatten(1, 2)
    y = model.get_submodule(path)(x, mask=mask)
    near(y, attn(x, mask=mask) + update)
    x[5] += 1
    moved = (model.get_submodule(path)(x, mask=mask) - y).abs().amax((1, 2)) > 1e-9
    assert moved.tolist() == [i == 5 for i in range(len(x))]


@pytest.mark.parametrize("init", ["paper", "identity"])
def test_start(init: str) -> None:
    model = tiny("convnext").eval()
    x = images(model)
    before = model(x)
    tuned = lowtide.apply(model, ConvAdapter(init=init)).eval()
    assert tuned.methods[0].identity == (init == "identity")
    assert ((tuned(x) - before).abs().max() < 1e-9) == (init == "identity")
    state = {k: v for k, v in tuned.adapter_state().items() if "/conv_adapter/" in k}
    for end, spread in (("grouped.weight", 0.02), ("pointwise.weight", 0.02 * (init == "paper"))):
        drawn = torch.cat([v.flatten() for k, v in state.items() if k.endswith(end)])
        assert abs(drawn.mean()) < 0.002 and abs(drawn.std() - spread) < 0.002
    assert all((v == k.endswith("alpha")).all() for k, v in state.items()
               if not k.endswith("weight"))  # fmt: skip
    for step in range(2):
        backward(tuned, x)
        grafts = [m for m in model.modules() if isinstance(m, ConvAdapterGraft)]
        alive = [[float(p.grad.abs().max()) > 0 for _, p in g.own()] for g in grafts]
        assert all(any(a) for a in alive) and (step == 0 or all(all(a) for a in alive))
        trained_ = [p for p in tuned.parameters() if p.requires_grad]
        torch.optim.SGD(trained_, lr=0.1).step()
        tuned.zero_grad()


@pytest.mark.parametrize("init", ["paper", "identity"])
def test_beside_attention_it_starts_as_pytorch_draws(init: str) -> None:
    torch.manual_seed(1)
    tuned = lowtide.apply(tiny("swin"), ConvAdapter(init=init, reduction=2))
    for i, width in ((0, 16), (1, 32)):
        at = f"layers.{i}.blocks.0.attn/conv_adapter/"
        state = {k.removeprefix(at): v for k, v in tuned.adapter_state().items() if at in k}
        for name, fan_in in (("grouped", 2 * 49), ("pointwise", width // 2)):
            for drawn in (state[f"{name}.weight"], state[f"{name}.bias"]):
                if name == "pointwise" and init == "identity":
                    assert not drawn.any()
                else:
                    assert 0.5 < drawn.abs().max() * fan_in**0.5 <= 1
        assert (state["alpha"] == 1).all()


def test_norms_train_when_asked() -> None:
    model = tiny("convnext")
    norms = {f"{s.path}.{p}" for s in measure(model, FAMILIES["convnext"]).of(Role.NORM)
             for p in s.params}  # fmt: skip
    tuned = lowtide.apply(model, ConvAdapter(norms=True), num_classes=FEW)
    kinds = {n.removeprefix("model.") for n, p in tuned.named_parameters() if p.requires_grad}
    assert norms and norms <= kinds
    assert not any("norm" in n for n, p in lowtide.apply(
        tiny("convnext"), ConvAdapter()).named_parameters() if p.requires_grad)  # fmt: skip


@pytest.mark.parametrize("activation, inside", [("gelu", 2), ("relu", 1)])
def test_it_keeps_its_input_the_filters_and_no_full_width_output(
    activation: str, inside: int
) -> None:
    kept: dict[int, int] = {}
    site = Site("f", Role.CONV, 0, Layout.FIRST, (1, 16, 6, 6), (1, 24, 3, 3), ())
    base = nn.Conv2d(16, 24, 2, stride=2).requires_grad_(False)
    graft = ConvAdapterGraft(base, site, ConvAdapter(reduction=4, activation=activation)).double()
    weights = {p.untyped_storage().data_ptr() for p in graft.parameters()}
    x = torch.randn(5, 16, 6, 6, dtype=torch.float64, requires_grad=True)

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        graft(x)
    hidden, weight = 8 * 5 * 4 * 9, 8 * 24 * 4
    assert sorted(kept.values()) == sorted([x.nbytes, weight, *[hidden] * inside])


def test_refusals() -> None:
    for options in ({"reduction": 0}, {"activation": "tanh"}):
        with pytest.raises(ValueError, match="conv_adapter needs reduction >= 1 and an activation"):
            ConvAdapter(**options)
    for family in ("vit", "mixer", "generic", "as_mlp"):
        with pytest.raises(Unsupported, match="conv_adapter needs blocks that convolve"):
            lowtide.apply(tiny(family), ConvAdapter())
    with pytest.raises(Unsupported, match="one filter per 5 channels, and .* has 24; choose"):
        lowtide.apply(tiny("convnext"), ConvAdapter(reduction=5))

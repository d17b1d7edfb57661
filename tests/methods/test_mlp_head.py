"""MLP-k against its equation written out, its counts, its statistics and what it keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from counts import trained
from nets import FEW, backward, images, near, stir, tiny
from torch import Tensor

import lowtide
from lowtide.core.site import Role, Sites
from lowtide.errors import InputError, Unsupported
from lowtide.families import FAMILIES, measure
from lowtide.methods.mlp_head import MLPHead


@pytest.mark.parametrize(
    "backbone, layers, count",
    [
        ("vit", 4, 1_776_384),
        ("swin", 4, 3_154_944),
        ("convnext", 4, 3_154_944),
        ("vit", 2, 768**2 + 3 * 768),
        ("resnet50", 3, 2 * (2048**2 + 3 * 2048)),
    ],
)
def test_count(backbone: str, layers: int, count: int) -> None:
    assert trained(backbone, MLPHead(layers=layers)) == count


def plain(state: dict[str, Tensor], h: Tensor, layers: int, training: bool) -> Tensor:
    """The equation in matrix products; without dropout."""
    for i in range(layers - 1):
        of = {k.rpartition(".")[2]: v for k, v in state.items() if f"hidden.{4 * i}." in k}
        norm = {k.rpartition(".")[2]: v for k, v in state.items() if f"hidden.{4 * i + 2}." in k}
        h = (h @ of["weight"].T + of["bias"]).clamp(min=0)
        mean, var = norm["running_mean"], norm["running_var"]
        if training:
            mean, var = h.mean(0), h.var(0, unbiased=False)
        h = (h - mean) / (var + 1e-5).sqrt() * norm["weight"] + norm["bias"]
    return h @ state["head/head/weight"].T + state["head/head/bias"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layers", [2, 4])
def test_the_equation(layers: int, training: bool) -> None:
    model = tiny("vit")
    method = MLPHead(layers=layers, dropout=0.0)
    tuned = lowtide.apply(model, method, num_classes=FEW).train()
    stir(tuned)
    tuned(images(model, 8))  # moves the statistics away from 0 and 1
    tuned.train(training)
    x = torch.randn(5, 32, dtype=torch.float64)
    state = {k: v.clone() for k, v in tuned.adapter_state().items()}
    near(model.head(x), plain(state, x, layers, training))


def test_dropout_drops_hidden_values_in_training_only() -> None:
    tuned = lowtide.apply(tiny("vit"), MLPHead(layers=2, dropout=0.5)).train()
    hidden = tuned.backbone.head.hidden
    x = torch.randn(64, 32, dtype=torch.float64)
    assert abs((hidden(x) == 0).double().mean() - 0.5) < 0.05
    assert not (hidden.eval()(x) == 0).any()


def test_hidden_weights_start_kaiming_normal_over_their_outputs() -> None:
    tuned = lowtide.apply(tiny("convnext"), MLPHead(layers=6))
    weights = [v for k, v in tuned.adapter_state().items() if v.shape == (48, 48)]
    assert len(weights) == 5
    assert abs(torch.stack(weights).std() / (2 / 48) ** 0.5 - 1) < 0.05


def test_statistics_move_and_travel() -> None:
    model = tiny("vit")
    twin = copy.deepcopy(model)
    tuned = lowtide.apply(model, MLPHead(), num_classes=FEW).train()
    x = images(model, 8)
    before = {k: v.clone() for k, v in tuned.adapter_state().items()}
    for _ in range(3):
        tuned(x)
    state = tuned.adapter_state()
    moved = {k for k in state if not torch.equal(state[k], before[k])}
    assert moved == {
        f"head/mlp_head/hidden.{i}.{n}"
        for i in (2, 6, 10)
        for n in ("running_mean", "running_var", "num_batches_tracked")
    }
    other = lowtide.apply(twin, MLPHead(), num_classes=FEW)
    other.load_adapter_state(state)
    near(other.eval()(x), tuned.eval()(x))


@pytest.mark.parametrize("dropout, each", [(0.0, 2), (0.1, 3)])
def test_it_keeps_features_of_the_head_only(dropout: float, each: int) -> None:
    """Per image the feature, and per hidden layer what ReLU and BatchNorm give (and dropout's mask,
    which on a CPU is as wide as its values)."""
    batch, c, kept = 6, 32, {}

    def keep(t: Tensor) -> Tensor:
        if not isinstance(t, torch.nn.Parameter) and t.shape[:1] == (batch,):
            kept[t.untyped_storage().data_ptr()] = t
        return t

    method = MLPHead(layers=4, dropout=dropout)
    tuned = lowtide.apply(tiny("vit"), method, num_classes=FEW).train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        tuned(images(tuned.backbone, batch))
    assert {t.shape for t in kept.values()} == {(batch, c)}
    assert sum(t.nbytes for t in kept.values()) == 8 * batch * c * (1 + 3 * each)


def test_no_gradient_enters_the_backbone() -> None:
    tuned = lowtide.apply(tiny("resnet"), MLPHead(), num_classes=FEW).train()
    backward(tuned, images(tuned.backbone))
    assert {n.split(".")[1] for n, p in tuned.named_parameters() if p.grad is not None} == {"fc"}


def test_refusals() -> None:
    for options in ({"layers": 1}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match="mlp_head needs layers >= 2"):
            MLPHead(**options)
    sites = measure(tiny("vit"), FAMILIES["vit"])
    headless = Sites(s for s in sites if s.role is not Role.HEAD)
    with pytest.raises(Unsupported, match="mlp_head needs a classifier"):
        list(MLPHead().edits(headless))
    tuned = lowtide.apply(tiny("vit"), MLPHead()).train()
    with pytest.raises(InputError, match="batch of 1"):
        tuned(images(tuned.backbone, 1))
    tuned.eval()(images(tuned.backbone, 1))

"""Backbones that timm did not write: called by name, answering with more than logits, tied."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import FEW, cotangent, near, stir
from torch import Tensor, nn

from lowtide import METHODS, apply, compress, decompress, load, plan
from lowtide.errors import InputError, Unsupported
from lowtide.planning.meter import footprint
from lowtide.planning.step import StepConfig, make_optimizer, training_step
from lowtide.training.feature_cache import trained_part

CONFIG = SimpleNamespace(hidden=16, heads=2, layers=3, patch=4, side=16, labels=10)


class Attention(nn.Module):
    """Queries, keys and values by maps of their own."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.query, self.key, self.value, self.dense = (
            nn.Linear(config.hidden, config.hidden) for _ in range(4)
        )

    def forward(self, hidden_states):
        q, k, v = (
            m(hidden_states).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for m in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.dense(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """One residual unit; gives a tuple, as there would be attentions to give."""

    def __init__(self, config):
        super().__init__()
        self.layernorm_before, self.layernorm_after = (nn.LayerNorm(config.hidden) for _ in "ab")
        self.attention = Attention(config)
        self.up = nn.Linear(config.hidden, 2 * config.hidden)
        self.down = nn.Linear(2 * config.hidden, config.hidden)

    def forward(self, hidden_states, output_attentions=False):
        hidden_states = hidden_states + self.attention(self.layernorm_before(hidden_states))
        y = F.gelu(self.up(self.layernorm_after(hidden_states)))
        return (hidden_states + self.down(y),)


@dataclass
class Output:
    """What the model answers."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: tuple[Tensor, ...]


class ForeignViT(nn.Module):
    """A ViT in the manner of transformers: a config, keyword arguments, a dataclass."""

    def __init__(self, config, tied="nothing", gives=Output):
        super().__init__()
        self.config, self.gives = config, gives
        self.embeddings = nn.Conv2d(3, config.hidden, config.patch, config.patch)
        self.cls = nn.Parameter(torch.randn(1, 1, config.hidden))
        layers = [Layer(config) for _ in range(config.layers)]
        if tied == "layer":
            layers = layers[:1] * config.layers
        if tied == "weight":
            for layer in layers[1:]:
                layer.up.weight = layers[0].up.weight
        self.layers = nn.ModuleList(layers)
        self.layernorm = nn.LayerNorm(config.hidden)
        self.classifier = nn.Linear(config.hidden, config.labels)
        self.pretrained_cfg = {"input_size": (3, config.side, config.side)}

    def forward(self, pixel_values=None, labels=None, return_dict=True) -> Any:
        x = self.embeddings(pixel_values).flatten(2).mT
        x, seen = torch.cat([self.cls.expand(len(x), -1, -1), x], 1), []
        for layer in self.layers:
            (x,) = layer(x, output_attentions=False)
            seen.append(x)
        logits = self.classifier(self.layernorm(x[:, 0]))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        said = {"loss": loss, "logits": logits, "hidden_states": tuple(seen)}
        return self.gives(**said) if return_dict else (logits, *seen)


def made(**options):
    torch.manual_seed(0)
    return ForeignViT(CONFIG, **options).double()


def pixels(batch=3):
    return torch.randn(batch, 3, CONFIG.side, CONFIG.side, dtype=torch.float64)


def logits(output):
    return output["logits"] if isinstance(output, dict) else output.logits


def grads(model, x):
    model.zero_grad()
    y = logits(model(pixel_values=x))
    y.backward(cotangent(y, 1))
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("gives", [Output, dict])
@pytest.mark.parametrize("name", ["lora", "ssf", "bias", "rlrr", "linear", "mlp_head", "full"])
def test_what_needs_no_blocks_trains_and_merges(name, gives):
    model, x = made(gives=gives), pixels()
    tuned = apply(model, METHODS[name](), num_classes=FEW)
    stir(tuned)
    assert all(g.abs().max() > 0 for g in grads(tuned.train(), x))
    y = tuned.eval()(pixel_values=x)
    assert type(y) is gives and logits(y).shape == (3, FEW)
    loss = tuned(x, labels=torch.zeros(3, dtype=torch.long))
    near(loss["loss"] if gives is dict else loss.loss, -logits(y).log_softmax(1)[:, 0].mean())
    near(tuned(x, return_dict=False)[0], logits(y))
    if name != "mlp_head":
        near(logits(tuned.merge_and_unload()(pixel_values=x)), logits(y))


@pytest.mark.parametrize("name", ["s2a", "dtl", "lst", "partial", "vpt", "unipt", "adapter"])
def test_what_needs_a_table_says_so_and_leaves_the_model_alone(name):
    model = made()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(Unsupported, match="needs|table|blocks"):
        apply(model, METHODS[name]())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("policy", ["exact", "tight"])
def test_it_is_compressed_and_planned(policy):
    x = pixels().float()
    model = made().float()
    plain = made().float()
    expected = grads(plain, x)
    compress(model, policy)
    assert torch.equal(model(x).logits, plain(x).logits)
    found = torch.cat([g.flatten() for g in grads(model, x)])
    whole = torch.cat([g.flatten() for g in expected])
    assert F.cosine_similarity(found, whole, 0) > (0.97 if policy == "tight" else 1 - 1e-6)
    assert type(decompress(model)(pixel_values=x)) is Output


def test_a_plan_equals_the_real_step():
    model = made().float()
    x, labels = pixels().float(), torch.zeros(3, dtype=torch.long)
    planned = plan(Logits(copy.deepcopy(model)), METHODS["lora"](), step=StepConfig(batch_size=3))
    tuned = apply(Logits(model), METHODS["lora"]())
    optimizer = make_optimizer(tuned.train())
    real = footprint(lambda: training_step(tuned, optimizer, [(x, labels)]), tuned, optimizer)
    assert planned.parts == real.parts


class Logits(nn.Module):
    """What a training step of ours wants: images in, logits out."""

    def __init__(self, model):
        super().__init__()
        self.model, self.pretrained_cfg = model, model.pretrained_cfg

    def forward(self, x):
        return self.model(pixel_values=x).logits


def test_features_of_a_model_without_steps_are_refused_in_one_line():
    tuned = apply(made(), METHODS["linear"]())
    with pytest.raises(InputError, match="ForeignViT") as error:
        trained_part(tuned)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tied", ["layer", "weight"])
@pytest.mark.parametrize("name", ["lora", "ssf", "bias", "rlrr", "full"])
def test_what_is_shared_is_changed_in_every_place(name, tied):
    """A shared layer has one adapter; of a shared weight each place has its own."""
    model, x = made(tied=tied), pixels()
    tuned = apply(model, METHODS[name](), num_classes=FEW)
    stir(tuned)
    assert all(g.abs().max() > 0 for g in grads(tuned.train(), x))
    y = logits(tuned.eval()(x))
    near(logits(tuned.merge_and_unload()(x)), y)


def test_a_saved_adapter_loads_on_shared_weights(tmp_path):
    tuned, x = apply(made(tied="weight"), METHODS["full"](), num_classes=FEW), pixels()
    stir(tuned)
    tuned.save_pretrained(tmp_path)
    near(logits(load(made(tied="weight"), tmp_path)(x)), logits(tuned.eval()(x)))


@pytest.mark.parametrize("part", ["whole", "layers"])
def test_what_was_compiled_is_tuned_as_if_it_were_not(part):
    model, x = made(), pixels()
    plain = apply(made(), METHODS["lora"](), num_classes=FEW)
    if part == "layers":
        for i, layer in enumerate(model.layers):
            model.layers[i] = torch.compile(layer, backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    tuned = apply(model, METHODS["lora"](), num_classes=FEW)
    assert tuned.adapter_state().keys() == plain.adapter_state().keys()
    tuned.load_adapter_state(plain.adapter_state())
    near(logits(tuned(x)), logits(plain(x)))


def test_a_tuned_model_compiles():
    tuned, x = apply(made(), METHODS["lora"](), num_classes=FEW), pixels()
    stir(tuned)
    expected = grads(tuned, x)
    compiled = torch.compile(tuned, backend="eager")
    for a, b in zip(grads(compiled, x), expected, strict=True):
        near(a, b)

"""Features kept between epochs: the same logits, gradients and runs as from images."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import timm
import torch
from nets import FEW, TABLES, cotangent, images, near, stir, tiny
from PIL import Image
from safetensors.torch import load_file
from tinted import write_tinted
from torch.nn.functional import scaled_dot_product_attention

from lowtide import METHODS, InputError
from lowtide.errors import Unsupported
from lowtide.training import feature_store
from lowtide.training.config import RunConfig
from lowtide.training.feature_cache import constant_outputs, features
from lowtide.training.loop import train
from lowtide.tuning.applying import apply
from lowtide.tuning.side_execution import FEATURE, STEM

CACHED = {
    "linear": METHODS["linear"](),
    "mlp_head": METHODS["mlp_head"](),
    "partial": METHODS["partial"](),
    "lst": METHODS["lst"](),
    "unipt": METHODS["unipt"](),
    "dtl": METHODS["dtl"](start_block=2),
}


def tuned(name, family, **options):
    torch.manual_seed(0)
    try:
        model = apply(tiny(family), CACHED.get(name) or METHODS[name](), num_classes=FEW, **options)
    except Unsupported as reason:
        pytest.skip(str(reason))
    stir(model)
    return model.eval()


@pytest.mark.parametrize("family", sorted(TABLES))
@pytest.mark.parametrize("name", CACHED)
def test_going_on_from_features_is_the_same_as_from_images(name, family):
    model = tuned(name, family)
    x = images(model.backbone)
    given = constant_outputs(model, x)
    if not given:
        assert name in {"dtl", "partial"}  # a chain too short to leave a block alone
        return
    whole = model(x)
    whole.backward(cotangent(whole, 1))
    grads = [p.grad for p in model.parameters()]
    model.zero_grad()
    with torch.no_grad():
        kept = features(model, given, x)
    assert kept.keys() == given.keys()
    again = model.forward_from(kept)
    again.backward(cotangent(whole, 1))
    near(again, whole)
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None) == (grad is None)
        if grad is not None:
            near(p.grad, grad)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_only_what_nothing_changes_is_kept(name):
    """Stirring what trains moves no kept feature, and moves the first output that is not kept."""
    model = tuned(name, "vit")
    x = images(model.backbone)
    given = constant_outputs(model, x)
    names = list(given)
    expected = {
        "linear": [FEATURE],
        "mlp_head": [FEATURE],
        "partial": ["blocks.2"],
        "lst": [STEM, "blocks.0", "blocks.1", "blocks.2", "blocks.3"],
        "unipt": [STEM, "blocks.0", "blocks.1", "blocks.2", "blocks.3"],
        "dtl": [STEM, "blocks.0"],
    }
    assert names == expected.get(name, [])
    stir(model)
    for key, value in features(model, names, x).items():
        assert torch.equal(value, given[key])


def test_random_blocks_are_not_kept():
    model = tuned("linear", "vit").train()
    x = images(model.backbone)
    assert list(constant_outputs(model, x)) == [FEATURE]
    model.backbone.blocks[1].attn.proj_drop = torch.nn.Dropout(0.1)
    assert list(constant_outputs(model, x)) == ["blocks.0"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_tinted(root, {"train": 10, "val": 4, "test": 5})
    return RunConfig(
        model="vit_micro_patch4_32",
        data=str(root),
        epochs=2,
        batch_size=8,
        lr=5e-3,
        warmup_epochs=0.0,
        device="cpu",
    )


@pytest.mark.parametrize("name", ["linear", "mlp_head", "dtl"])
def test_a_run_from_features_is_the_same_run(config, name, tmp_path):
    config = replace(config, method=METHODS[name]())
    plain = train(config, tmp_path / "plain")
    kept = train(replace(config, cache_features=True), tmp_path / "kept")
    for a, b in zip(plain.history, kept.history, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-4)
        assert a.val_accuracy == b.val_accuracy
    assert plain.test_confusion == kept.test_confusion
    for run in (plain, kept):
        assert run.measured_peak_bytes == run.planned.peak_bytes
    assert kept.planned.peak_bytes != plain.planned.peak_bytes
    a, b = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("plain", "kept"))
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-3, atol=1e-4)
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {
        p.name for p in (tmp_path / "plain").iterdir()
    }


def test_a_killed_run_from_features_continues(config, tmp_path, monkeypatch):
    config = replace(config, method=METHODS["linear"](), cache_features=True)
    whole = train(config, tmp_path / "whole")
    monkeypatch.setattr("lowtide.training.loop.finish", lambda *_: {})
    monkeypatch.setattr("lowtide.training.loop.save", _stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut")
    monkeypatch.undo()
    assert train(config, tmp_path / "cut", continues=True).history[1].train_loss == (
        pytest.approx(whole.history[1].train_loss, abs=1e-6)
    )


def _stop_after(epochs):
    from lowtide.training.loop import save

    def stop(run, optimizer):
        save(run, optimizer)
        if len(run.history) == epochs:
            raise KeyboardInterrupt

    return stop


def test_what_cannot_be_kept_is_refused_at_the_door(config, tmp_path):
    with pytest.raises(InputError, match="lora changes the backbone from its first"):
        train(replace(config, cache_features=True), tmp_path / "run")
    with pytest.raises(InputError, match="augment none, not flip"):
        replace(config, cache_features=True, augment="flip")
    assert not (tmp_path / "run").exists()


def test_a_classifier_of_several_parts_is_not_begun_at() -> None:
    """What `get_classifier` tells may be the last of them: the norm in front would be left out."""
    torch.manual_seed(0)
    model = timm.create_model("efficientvit_m0", num_classes=5, img_size=64)
    model.pretrained_cfg = {"input_size": (3, 64, 64)}
    tuned = apply(model, METHODS["linear"]()).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        names = constant_outputs(tuned, x)
        assert FEATURE not in names
        near(tuned.forward_from(features(tuned, names, x)), tuned(x), 1e-6)


class Stem(torch.nn.Module):
    """A backbone without a table whose features pass through one function."""

    def __init__(self, function):
        super().__init__()
        self.function, self.body, self.head = function, torch.nn.Linear(8, 4), torch.nn.Linear(4, 5)

    def forward_features(self, x):
        return self.body(self.function(x.mean(1)))

    def forward_head(self, x, pre_logits=False):
        x = x.mean(1)
        return x if pre_logits else self.head(x)

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize(
    ("function", "random"),
    [
        (lambda x: scaled_dot_product_attention(x, x, x), False),
        (lambda x: scaled_dot_product_attention(x, x, x, dropout_p=0.1), True),
        (lambda x: torch.nn.functional.dropout(x, 0.0, True), False),
        (lambda x: torch.nn.functional.dropout(x, 0.1, True), True),
        (lambda x: torch.nn.functional.rrelu(x, training=False), False),
        (lambda x: torch.nn.functional.rrelu(x, training=True), True),
        (lambda x: x + torch.rand_like(x), True),
        (lambda x: x * torch.bernoulli(torch.full_like(x, 0.9)), True),
    ],
)
def test_what_may_draw_and_does_not_is_kept(function, random):
    model = Stem(lambda x: x)
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    model = apply(model, METHODS["linear"]())
    model.backbone.function = function
    assert bool(constant_outputs(model.train(), torch.randn(2, 3, 8, 8))) is not random


def computed(monkeypatch):
    """Count the images whose features are computed."""
    counts = []
    monkeypatch.setattr(
        feature_store, "features", lambda t, n, x: counts.append(len(x)) or features(t, n, x)
    )
    return counts


def test_later_runs_find_the_features_of_the_same_layers(config, tmp_path, monkeypatch):
    """Another seed computes none; a method that keeps other layers all of its own."""
    config, kept = replace(config, cache_features=True), tmp_path / "kept"
    linear, dtl = (replace(config, method=METHODS[name]()) for name in ("linear", "dtl"))
    alone = train(replace(linear, seed=1), tmp_path / "alone")
    counts = computed(monkeypatch)
    train(linear, tmp_path / "first", keep_features=kept)
    images = sum(counts)
    assert images > 20 and not (tmp_path / "first" / "features").exists()
    again = train(replace(linear, seed=1), tmp_path / "again", keep_features=kept)
    assert sum(counts) == images
    assert again.history[0].train_loss == alone.history[0].train_loss
    assert again.test_confusion == alone.test_confusion
    train(dtl, tmp_path / "dtl", keep_features=kept)
    assert sum(counts) == 2 * images and len(list(kept.iterdir())) == 2


def test_a_changed_image_is_computed_again(config, tmp_path, monkeypatch):
    data = tmp_path / "images"
    write_tinted(data, {"train": 10, "val": 4, "test": 5})
    config = replace(config, data=str(data), cache_features=True, method=METHODS["linear"]())
    train(config, tmp_path / "first", keep_features=tmp_path / "kept")
    counts = computed(monkeypatch)
    changed = next((data / "train").rglob("*.png"))
    Image.new("RGB", (32, 32), (1, 2, 3)).save(changed)
    train(config, tmp_path / "second", keep_features=tmp_path / "kept")
    assert sum(counts) == 1


def test_rows_that_were_not_finished_are_made_again(config, tmp_path, monkeypatch):
    config, kept = replace(config, cache_features=True, method=METHODS["linear"]()), tmp_path / "k"
    whole = train(config, tmp_path / "whole", keep_features=kept)
    (folder,) = kept.iterdir()
    index = json.loads((folder / "index.json").read_text())
    rows = (folder / "rows.f32").read_bytes()
    (folder / "index.json").write_text(json.dumps({k: v for k, v in index.items() if v < 7}))
    (folder / "rows.f32").write_bytes(rows[: len(rows) // 2 + 5])
    counts = computed(monkeypatch)
    again = train(config, tmp_path / "again", keep_features=kept)
    assert sum(counts) == len(index) - 7
    assert [e.train_loss for e in again.history] == [e.train_loss for e in whole.history]
    (folder / "rows.f32").write_bytes(rows[:100])
    with pytest.raises(InputError, match="is damaged: remove it"):
        train(config, tmp_path / "damaged", keep_features=kept)


def test_features_are_kept_only_where_they_are_made(config, tmp_path):
    with pytest.raises(InputError, match="expected both"):
        train(config, tmp_path / "run", keep_features=tmp_path / "kept")

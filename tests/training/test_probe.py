"""A classifier that starts at a linear probe of the training images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from tinted import write_tinted

import lowtide
from lowtide import METHODS, InputError
from lowtide.inference.evaluate import open_run
from lowtide.targets.classify import Classify
from lowtide.targets.linear import STRENGTHS
from lowtide.targets.linear import softmax_regression as fit
from lowtide.training import loop, starting_point
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.training.probe import images_for_probe, start_at_probe, trains_beside
from lowtide.training.starting_point import SOFTENED
from lowtide.training.summary import read_summary
from lowtide.tuning.adapter_files import read_config

RNG = np.random.default_rng(3)


def clouds(classes, each=20, width=6, spread=1.0):
    """Features around one centre per class, far from zero and of another size than one."""
    centres = RNG.normal(size=(classes, width)) * 4
    y = np.repeat(np.arange(classes), each)
    x = centres[y] + RNG.normal(size=(len(y), width)) * spread + 30
    x[:, 0] *= 1e-3  # one that hardly varies
    return (x * 0.1).astype(np.float32), y


def divisors(x):
    """What each feature is divided by: its deviation, or a tenth of that of all."""
    return np.maximum(x.std(0), np.sqrt(x.var(0).mean()) / 10)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_fit_is_where_the_gradient_of_what_it_states_vanishes(classes):
    x, y = clouds(classes)
    found = fit(x, y, classes, seed=0)
    assert found.strength in STRENGTHS
    x64 = x.astype(np.float64)
    spread = divisors(x64)
    assert spread[0] > x64[:, 0].std() and np.allclose(spread[1:], x64[:, 1:].std(0))
    logits = x64 @ found.weight.T.astype(np.float64) + found.bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    error = p - np.eye(classes)[y]
    # For two classes scikit-learn penalises the difference of the rows, twice what one row has.
    penalty = found.weight * spread / found.strength * (2 if classes == 2 else 1)
    gradient = error.T @ ((x64 - x64.mean(0)) / spread) + penalty
    assert np.abs(gradient).max() < 0.02 * len(y) / classes
    assert np.abs(error.sum(0)).max() < 0.02 * len(y) / classes
    assert (logits.argmax(1) == y).mean() > 0.9


def test_a_class_that_no_image_has_gets_no_weight():
    x, y = clouds(3)
    found = fit(x, np.array([0, 2, 5])[y], 6, seed=0)
    assert not found.weight[[1, 3, 4]].any() and found.weight[[0, 2, 5]].all()
    assert set((x @ found.weight.T + found.bias).argmax(1)) == {0, 2, 5}


def test_few_images_of_a_class_or_equal_features_are_no_trouble():
    x, y = clouds(3, each=1)
    assert (fit(x, y, 3, seed=0).weight @ x.T).shape == (3, 3)
    lonely = np.arange(len(x)) == 0
    x = np.concatenate([x, x + 0.1, x - 0.1, x + 0.2])
    y = np.concatenate([lonely, np.zeros(9, bool)]).astype(int)
    for seed in range(5):
        assert np.isfinite(fit(x, y, 2, seed).weight).all()
    alike = fit(np.ones((8, 4), np.float32), np.arange(8) % 2, 2, seed=0)
    assert np.isfinite(alike.weight).all() and np.isfinite(alike.bias).all()


def test_the_penalty_is_the_one_that_does_best_on_images_held_out():
    x, y = clouds(3, each=15, width=40, spread=8.0)
    z = (x - x.mean(0)) / divisors(x)
    folds = StratifiedKFold(3, shuffle=True, random_state=5)
    order = np.random.default_rng(5).permutation(len(z))
    scores = {
        c: cross_val_score(LogisticRegression(C=c, max_iter=300), z[order], y[order], cv=folds)
        for c in STRENGTHS
    }
    assert len({s.mean() for s in scores.values()}) > 2
    assert fit(x, y, 3, seed=5).strength == max(scores, key=lambda c: scores[c].mean())


@pytest.mark.parametrize(
    "model", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "levit_128s", "resnet10t"]
)
@pytest.mark.parametrize("method", ["linear", "mlp_head"])
def test_the_model_with_its_probe_answers_as_the_probe_does(model, method):
    torch.manual_seed(0)
    backbone = timm.create_model(model, num_classes=5)
    tuned = lowtide.apply(backbone, METHODS[method](), num_classes=3, head_init="zero")
    images = torch.randn(6, 3, 224, 224)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    images += labels.view(-1, 1, 1, 1)
    assert images_for_probe(tuned, 6) == 6
    before = {n: p.clone() for n, p in tuned.named_parameters()}
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    assert start_at_probe(tuned, tuned, batches, Classify(("a", "b", "c")), 0)
    with torch.no_grad():
        assert torch.equal(tuned.eval()(images).argmax(1), labels)
    changed = {n for n, p in tuned.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all("head" in n or "fc" in n for n in changed)


def test_a_run_starts_at_it_and_says_what_it_is_worth(tmp_path, capsys):
    data = write_tinted(tmp_path / "data", dict.fromkeys(("train", "val", "test"), 12))
    config = RunConfig(
        "vit_micro_patch4_32",
        str(data),
        METHODS["lora"](),
        epochs=1,
        lr=1e-12,
        weight_decay=0.0,
        warmup_epochs=0.0,
        device="cpu",
    )
    summary = train(config, tmp_path / "run")
    assert summary.start_accuracy == summary.val_accuracy > 0.8
    assert read_summary(tmp_path / "run" / "summary.json").start_accuracy == summary.start_accuracy
    assert f"val accuracy {summary.start_accuracy:.3f}" in capsys.readouterr().err
    assert read_config(tmp_path / "run")["backbone"]["head_init"] == "zero"
    cached = replace(config, method=METHODS["linear"](), cache_features=True)
    assert train(cached, tmp_path / "cached").start_accuracy == summary.start_accuracy
    opened = (open_run(tmp_path / name, device="cpu") for name in ("run", "cached"))
    beside, alone = (run.tuned.backbone.head for run in opened)
    assert torch.allclose(beside.weight, SOFTENED * alone.weight, rtol=1e-4)
    assert torch.allclose(beside.bias, SOFTENED * alone.bias, rtol=1e-4)
    zero = replace(config, head_init="zero", keep="last")
    assert train(zero, tmp_path / "zero").start_accuracy is None


@pytest.mark.parametrize(
    ("model", "method", "scale", "said"),
    [
        ("vit_micro_patch4_32", "linear", 0.0, "head_lr_scale 0 trains nothing"),
        ("dla46_c", "lora", 0.5, "dla46_c has none"),  # its classifier is a convolution
    ],
)
def test_a_rate_of_the_classifier_alone_that_does_nothing_is_refused(
    model, method, scale, said, tmp_path, capsys
):
    data = write_tinted(tmp_path / "data", dict.fromkeys(("train", "val", "test"), 4))
    config = RunConfig(
        model, str(data), METHODS[method](), head_lr_scale=scale, pretrained=False, device="cpu"
    )
    with pytest.raises(InputError, match=said):
        train(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.*"))
    assert "linear probe" not in capsys.readouterr().err  # no image was run for it


def test_what_trains_beside_the_classifier_is_known():
    backbone = timm.create_model("vit_micro_patch4_32", num_classes=3)
    for name, beside in (("linear", False), ("bias", True), ("mlp_head", True)):
        assert trains_beside(lowtide.apply(backbone, METHODS[name](), num_classes=3)) is beside


def test_a_resumed_run_keeps_what_it_said_of_the_start(tmp_path, monkeypatch):
    data = write_tinted(tmp_path / "data", dict.fromkeys(("train", "val", "test"), 6))
    config = RunConfig(
        "vit_micro_patch4_32", str(data), METHODS["linear"](), epochs=3, device="cpu", lr=0.1
    )
    whole = train(config, tmp_path / "whole")
    kept, saves = loop.save, []

    def interrupted(*args):
        kept(*args)
        saves.append(args)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    fitted = []
    monkeypatch.setattr(starting_point, "start_at_probe", lambda *_: fitted.append(1))
    resumed = train(config, tmp_path / "run", continues=True)
    assert not fitted and resumed.start_accuracy == whole.start_accuracy
    assert [e.train_loss for e in resumed.history] == [e.train_loss for e in whole.history]

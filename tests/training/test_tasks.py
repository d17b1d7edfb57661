"""Runs that learn several labels or a number, and runs that make up for rare classes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from tinted import write_tinted

from lowtide import METHODS, InputError, UnknownName
from lowtide.cli import main
from lowtide.data import Preprocessing, loader, read
from lowtide.inference.evaluate import open_run, score
from lowtide.targets.classify import draw_weights
from lowtide.training import loop
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.training.summary import read_summary

MODEL = "vit_micro_patch4_32"


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Noise of any tint; which colours are strong, and how bright it is."""
    root = tmp_path_factory.mktemp("tints")
    rng = np.random.default_rng(0)
    flags, numbers = ["path,red,green,blue"], ["path,brightness"]
    for i in range(60):
        strong = rng.integers(0, 2, 3)
        pixels = rng.integers(0, 120, (32, 32, 3)) + 110 * strong
        Image.fromarray(pixels.astype("uint8")).save(root / f"{i}.png")
        flags.append(f"{i}.png,{','.join(map(str, strong))}")
        numbers.append(f"{i}.png,{1000 + 10 * pixels.mean():.3f}")
    (root / "flags.csv").write_text("\n".join(flags))
    (root / "numbers.csv").write_text("\n".join(numbers))
    return root


def config(data, **options):
    given = {"epochs": 2, "batch_size": 16, "lr": 1e-2, "warmup_epochs": 0.0, "device": "cpu"}
    return RunConfig(MODEL, str(data), **{"method": METHODS["linear"](), **given, **options})


def said(capsys, *args):
    capsys.readouterr()
    assert main([*map(str, args), "--device", "cpu"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "options", "names", "metric", "words"),
    [
        ("flags.csv", {"task": "multilabel"}, ("red", "green", "blue"), "map", "mAP "),
        ("numbers.csv", {"task": "regress"}, ("brightness",), "r2", "R²"),
        ("numbers.csv", {"task": "regress", "loss": "smooth_l1"}, ("brightness",), "r2", "R²"),
    ],
)
def test_a_run_of_another_task_from_start_to_answer(
    tables, tmp_path, capsys, table, options, names, metric, words
):
    run = tmp_path / "run"
    summary = train(config(tables / table, **options), run)
    assert read_summary(run / "summary.json") == summary
    assert summary.data.classes == names and summary.metric == metric
    assert 0.5 < summary.tested < 1.01 and summary.start_score > 0.5
    assert summary.test_accuracy is None and summary.test_confusion is None
    assert summary.measured_peak_bytes == summary.planned.peak_bytes
    found = json.loads(said(capsys, "eval", run, "--json"))
    assert found == pytest.approx({"images": 12, **summary.test_scores}, rel=1e-4)
    assert words in said(capsys, "eval", run)
    (answer,) = map(json.loads, said(capsys, "predict", run, tables / "0.png").splitlines())
    text = read(tables / table, task=options["task"]).text
    truth = {s.path.name: s.label for s in score_all(tables / table, options)}["0.png"]
    if options["task"] == "regress":
        assert abs(answer["value"] - truth[0]) < 3 * summary.test_scores["rmse"] + 50
        assert summary.targets["mean"] > 1000
    else:
        assert set(answer["probabilities"]) == set(names)
        assert ";".join(answer["labels"]) == text(truth)


@pytest.mark.parametrize(
    ("table", "task", "share"), [("flags.csv", "multilabel", 0.3), ("numbers.csv", "regress", 1.0)]
)
def test_what_starts_at_a_probe_beside_a_backbone_answers_as_it(
    tables, tmp_path, table, task, share
):
    still = config(tables / table, task=task, epochs=1, lr=1e-12, weight_decay=0.0)
    alone = train(still, tmp_path / "alone")
    beside = train(replace(still, method=METHODS["bias"]()), tmp_path / "beside")
    assert beside.start_score == alone.start_score
    assert beside.history[-1].validated == pytest.approx(alone.start_score, abs=1e-6)
    heads = [
        open_run(tmp_path / run, device="cpu").tuned.backbone.head.weight
        for run in ("alone", "beside")
    ]
    assert torch.allclose(heads[1], share * heads[0], rtol=1e-4)


def score_all(source, options):
    data = read(source, task=options["task"])
    return [*data.train, *data.val, *data.test]


def test_a_merged_run_of_a_number_answers_in_its_units(tables, tmp_path, capsys):
    train(config(tables / "numbers.csv", task="regress", epochs=1), tmp_path / "run")
    merged = tmp_path / "m.safetensors"
    said(capsys, "merge", tmp_path / "run", "--output", merged)
    both = [
        json.loads(said(capsys, "predict", model, tables / "1.png"))["value"]
        for model in (tmp_path / "run", merged)
    ]
    assert both[0] == pytest.approx(both[1], rel=1e-6)


def test_what_a_task_does_not_have_is_refused(tables):
    for options, error, words in (
        ({"task": "multilable"}, UnknownName, "did you mean multilabel"),
        ({"task": "regress", "loss": "bce"}, UnknownName, "mse, smooth_l1"),
        ({"task": "regress", "balance": "weights"}, InputError, "it is for classify"),
        ({"target": "red"}, InputError, "not for classify"),
        ({"balance": "both"}, UnknownName, "none, sampler, weights"),
    ):
        with pytest.raises(error, match=words):
            config(tables / "flags.csv", **options)


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """Three classes, of which one is rare in train."""
    root = write_tinted(
        tmp_path_factory.mktemp("rare"), dict.fromkeys(("train", "val", "test"), 12)
    )
    for path in sorted((root / "train/blue").iterdir())[3:]:
        path.unlink()
    return root


def test_class_weights_are_planned_recorded_and_learnt_with(rare, tmp_path):
    plain = config(rare, head_init="zero", epochs=1, batch_size=8)
    summary = train(replace(plain, balance="weights"), tmp_path / "weights")
    assert summary.config.completed()["balance"] == "weights"
    assert summary.measured_peak_bytes == summary.planned.peak_bytes
    assert set(summary.test_scores) == {
        *("accuracy", "mean_class_accuracy", "macro_f1", "auroc", "ece")
    }
    assert summary.temperature > 0
    train(plain, tmp_path / "plain")
    weights = [load_file(tmp_path / n / "adapter_model.safetensors") for n in ("weights", "plain")]
    assert not all(torch.equal(weights[0][k], v) for k, v in weights[1].items())


def test_a_balanced_draw_gives_each_class_as_often_and_repeats_itself(rare):
    data = read(rare)
    weights = draw_weights([s.label for s in data.train], 3)
    model = timm.create_model(MODEL)
    transform = Preprocessing.of(model).transform(train=True, augment="crop")
    counts = np.zeros(3)
    for epoch in range(20):
        load = loader(data.train, transform, 9, shuffle=True, epoch=epoch, weights=weights)
        batches = [labels for _, labels in load]
        counts += np.bincount(torch.cat(batches).numpy(), minlength=3)
        again = loader(data.train, transform, 9, shuffle=True, epoch=epoch, weights=weights)
        assert all(torch.equal(a, b) for a, (_, b) in zip(batches, again, strict=True))
    assert counts.sum() == 20 * len(data.train)
    assert counts.min() > 0.8 * counts.max()
    (images, _), *_ = loader(data.train[:1], transform, 4, shuffle=True, weights=[1.0])
    assert len(images) == 1
    pair = loader(data.train[:2], transform, 2, shuffle=True, weights=[1.0, 0.0])
    ((images, labels),) = pair
    assert labels[0] == labels[1] and not torch.equal(images[0], images[1])


def test_a_run_that_draws_is_resumed_as_it_would_have_gone_on(rare, tmp_path, monkeypatch):
    wanted = config(rare, balance="sampler", epochs=3, augment="flip")
    whole = train(wanted, tmp_path / "whole")
    kept = loop.save

    def interrupted(*args):
        kept(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path / "run")
    monkeypatch.undo()
    resumed = train(wanted, tmp_path / "run", continues=True)
    assert [e.train_loss for e in resumed.history] == [e.train_loss for e in whole.history]
    assert resumed.test_scores == whole.test_scores
    scored = score(open_run(tmp_path / "run", device="cpu"), read(rare).test)
    assert scored["macro_f1"] == pytest.approx(whole.test_scores["macro_f1"])


def test_an_interrupted_run_is_told_the_command_that_continues_it(
    rare, tmp_path, monkeypatch, capsys
):
    def interrupted(*_):
        raise KeyboardInterrupt

    options = f"--model {MODEL} --data {rare} --method linear --epochs 1 --device cpu".split()
    folder = tmp_path / "my run"
    monkeypatch.setattr(loop, "save", interrupted)
    assert main(["train", *options, "--output", str(folder)]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"lowtide: interrupted; lowtide train --resume '{folder}' continues"
    monkeypatch.setattr(loop, "prepare", interrupted)
    assert main(["train", *options, "--output", str(tmp_path / "unbegun")]) == 130
    assert capsys.readouterr().err == "lowtide: interrupted\n"

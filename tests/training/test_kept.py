"""The epoch that is kept: which it is, that its weights are tested and saved, and a kill."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tinted import write_tinted

from lowtide import METHODS, InputError
from lowtide.cli import main
from lowtide.data import read
from lowtide.inference.evaluate import open_run, score
from lowtide.training import kept, loop, starting_point
from lowtide.training.config import RunConfig
from lowtide.training.loop import train


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_tinted(tmp_path_factory.mktemp("kept"), {"train": 6, "val": 5, "test": 4})


@pytest.fixture
def config(images):
    return RunConfig(
        "vit_micro_patch4_32",
        str(images),
        METHODS["bias"](),
        epochs=4,
        batch_size=6,
        lr=1e-3,
        head_init="trunc_normal",
        keep="best",
        device="cpu",
    )


@pytest.fixture
def scores(monkeypatch):
    """Let validation say what a test wants, the start first; and note the weights at each."""

    def say(*values):
        said, seen = iter(values), []

        def score(*_):
            seen.append(None)
            return next(said)

        for module in (kept, loop, starting_point):
            monkeypatch.setattr(module, "score_of", score)
        return seen

    return say


def kill(config, folder, monkeypatch, after):
    """Kill a run when so many epochs are saved and one more is only trained and kept."""
    save, saves = loop.save, []

    def killed(*args):
        if len(saves) == after:
            raise KeyboardInterrupt
        save(*args)
        saves.append(args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save", killed)
        train(config, folder)


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("said", "best", "more"),
    [
        ((0.5, 0.4, 0.6, 0.55, 0.5), 2, {}),
        ((0.5, 0.4, 0.6, 0.6, 0.5), 3, {"ema": 0.5}),
        ((0.5, 0.4, 0.5, 0.3, 0.5), 0, {"frozen_dtype": "int8"}),
        ((0.1, 0.4, 0.5, 0.6, 0.7), 4, {}),
    ],
)
def test_the_best_epochs_weights_are_saved(config, tmp_path, scores, monkeypatch, said, best, more):
    config = replace(config, **more)
    states, save = [], loop.keep_if_best

    def noted(run):
        states.append({k: v.clone() for k, v in run.tuned.adapter_state().items()})
        save(run)

    for module in (kept, loop):
        monkeypatch.setattr(module, "keep_if_best", noted)
    scores(*said)
    summary = train(config, tmp_path / "run")
    assert (summary.kept_epoch, summary.val_accuracy) == (best, said[best])
    assert summary.start_accuracy == said[0]
    assert equal(weights(tmp_path / "run"), states[best])
    assert not equal(states[0], states[1]) and not equal(states[1], states[2])
    assert not list((tmp_path / "run").glob("best-*")) + list((tmp_path / "run").glob("check*"))


@pytest.mark.parametrize(
    ("start", "end", "between", "share"),
    [
        (0.6, 0.7, (0.8, 0.8, 0.7), 1.0),  # the error of 0.8 on 15 images is 0.1010
        (0.6, 0.69, (0.8, 0.8, 0.7), 0.5),
        (0.6, 0.3, (0.6, 0.5, 0.4), 0.25),
        (1.0, 0.4, (0.9, 0.7, 0.5), 0.0),
        (0.2, 0.4, (0.3, 0.3, 0.3), 1.0),
    ],
)
@pytest.mark.parametrize("more", [{}, {"ema": 0.5}, {"policy": "tight"}], ids=str)
def test_the_end_is_kept_unless_a_point_before_it_is_better_by_a_standard_error(
    config, tmp_path, scores, monkeypatch, start, end, between, share, more
):
    states: list[dict[str, torch.Tensor]] = []

    def state(run):
        return {k: v.clone() for k, v in run.tuned.adapter_state().items()}

    def at_start(run, saved=kept.keep_start):
        states.append(state(run))
        saved(run)

    def at_end(run, model, put=kept.put_back):
        states.append(state(run))
        return put(run, model)

    monkeypatch.setattr(starting_point, "keep_start", at_start)
    monkeypatch.setattr(loop, "put_back", at_end)
    scores(start, 0.9, 0.9, 0.9, end, *between)  # epochs between count for nothing
    summary = train(replace(config, keep="auto", **more), tmp_path / "run")
    points = dict(zip((0.0, 0.25, 0.5, 0.75, 1.0), (start, *between, end), strict=True))
    assert (summary.kept_share, summary.val_accuracy) == (share, points[share])
    assert summary.kept_epoch == 4
    first, last = states
    assert not equal(first, last)
    for key, saved in weights(tmp_path / "run").items():
        torch.testing.assert_close(saved, (1 - share) * first[key] + share * last[key])
    if share in (0, 1):
        assert equal(weights(tmp_path / "run"), first if share == 0 else last)
    assert not list((tmp_path / "run").glob("start*")) + list((tmp_path / "run").glob("best*"))


def test_a_killed_run_goes_between_its_start_and_its_end_as_well(
    config, tmp_path, scores, monkeypatch
):
    config = replace(config, keep="auto")
    said = (0.9, 0.1, 0.1, 0.1, 0.1, 0.2, 0.95, 0.3)
    scores(*said)
    train(config, tmp_path / "whole")
    scores(*said)
    kill(config, tmp_path / "run", monkeypatch, after=1)
    scores(*said[2:])
    summary = train(config, tmp_path / "run", continues=True)
    assert (summary.kept_share, summary.val_accuracy) == (0.5, 0.95)
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_what_is_tested_is_what_is_kept(config, images, tmp_path, scores, capsys):
    scores(0.5, 0.9, 0.1, 0.1, 0.1)
    args = ["train", "--config", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "run")]
    (tmp_path / "c.yaml").write_text(json.dumps(config.to_dict()))
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "kept epoch 1 of 4" in out and "start val accuracy 0.5000" in out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    saved = score(open_run(tmp_path / "run", device="cpu"), read(images).test)
    assert summary["test_accuracy"] == saved["accuracy"]


def test_updates_in_backward_and_all_weights_are_kept_as_well(config, tmp_path, scores):
    scores(0.5, 0.6, 0.4, 0.4)
    config = replace(config, method=METHODS["full"](), update_in_backward=True, epochs=3, lr=1e-4)
    train(config, tmp_path / "run")
    scores(0.5, 0.4, 0.4, 0.6)
    train(config, tmp_path / "last")
    assert not equal(weights(tmp_path / "run"), weights(tmp_path / "last"))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_killed_run_keeps_what_the_whole_one_does(config, tmp_path, scores, monkeypatch, stop):
    said = (0.5, 0.7, 0.6, 0.8, 0.1)
    scores(*said)
    train(config, tmp_path / "whole")
    scores(*said)
    kill(config, tmp_path / "run", monkeypatch, after=stop)
    scores(*said[stop + 1 :])
    summary = train(config, tmp_path / "run", continues=True)
    assert (summary.kept_epoch, summary.start_accuracy) == (3, 0.5)
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_patience_ends_a_run_that_gets_no_better(config, tmp_path, scores):
    scores(0.5, 0.6, 0.6, 0.6)
    summary = train(replace(config, epochs=9, patience=2), tmp_path / "run")
    assert (len(summary.history), summary.kept_epoch) == (3, 3)
    scores(0.5, 0.1, 0.2)
    summary = train(replace(config, epochs=9, patience=2), tmp_path / "none")
    assert (len(summary.history), summary.kept_epoch, summary.val_accuracy) == (2, 0, 0.5)


def test_the_last_epoch_is_kept_where_it_is_asked_for(config, tmp_path, scores):
    scores(0.9, 0.1)
    summary = train(replace(config, keep="last", epochs=2), tmp_path / "run")
    assert (summary.kept_epoch, summary.val_accuracy, summary.start_accuracy) == (2, 0.1, None)


def test_a_run_that_was_begun_before_there_was_a_choice_goes_on(config, tmp_path, monkeypatch):
    config = replace(config, keep="last", epochs=2)
    train(config, tmp_path / "whole")
    kill(config, tmp_path / "run", monkeypatch, after=1)
    path = tmp_path / "run/config.yaml"
    new = ("keep:", "patience:", "head_lr_scale:")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if not x.startswith(new)))
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_what_a_run_goes_back_to_is_the_whole_probe(config, tmp_path, scores):
    heads = []
    for name in ("bias", "linear"):
        scores(0.9, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.3)
        begun = replace(config, method=METHODS[name](), head_init="probe", keep="auto")
        assert train(begun, tmp_path / name).kept_share == 0
        heads.append(open_run(tmp_path / name, device="cpu").tuned.backbone.head.weight)
    assert torch.equal(*heads)


def test_what_is_printed_says_how_far_it_went(config, images, tmp_path, scores, capsys):
    (tmp_path / "c.yaml").write_text(json.dumps(config.to_dict()))
    args = ["train", "--config", str(tmp_path / "c.yaml"), "--keep", "auto", "--output"]
    scores(0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.9, 0.3)
    assert main([*args, str(tmp_path / "run")]) == 0
    assert "kept 0.5 of the way to epoch 4 of 4" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    saved = score(open_run(tmp_path / "run", device="cpu"), read(images).test)
    assert summary["test_accuracy"] == saved["accuracy"]
    scores(0.9, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.3)
    assert main([*args, str(tmp_path / "none")]) == 0
    assert "kept the start, which none beat of 4 epochs" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="there are none"):
        train(replace(config, train_on_val=True), tmp_path / "run")

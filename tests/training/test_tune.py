"""A search for options: what is tried, what it leaves, how it goes on, and what it ends in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tinted import write_tinted

from lowtide import METHODS, InputError
from lowtide.cli import main
from lowtide.training import tune as tuning
from lowtide.training.config import RunConfig, read_yaml
from lowtide.training.tune import JOURNAL, Search, tune

MODEL = "vit_micro_patch4_32"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_tinted(tmp_path_factory.mktemp("tune"), {"train": 5, "val": 4, "test": 3})


@pytest.fixture
def config(images):
    method = METHODS["mlp_head"](layers=2)
    return RunConfig(MODEL, str(images), method, epochs=2, cache_features=True, device="cpu")


def trials(folder):
    """What the journal says: parameters in the order they were tried."""
    lines = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    return [line["param_value_internal"] for line in lines if "param_value_internal" in line]


@pytest.fixture
def runs(monkeypatch):
    """The configs that are run, and the accuracy that each is said to reach."""
    kept, seen = tuning.train, []

    def watched(config, folder, **options):
        seen.append(config)
        return kept(config, folder, **options)

    monkeypatch.setattr(tuning, "train", watched)
    return seen


def test_the_first_trial_is_the_config_itself_and_no_trial_is_tested(config, tmp_path, runs):
    best = tune(config, tmp_path / "s", Search(trials=3))
    assert [c.lr for c in runs][0] == pytest.approx(config.method.learning_rate)
    assert len({c.lr for c in runs}) == len(runs) == 3
    own = config.method.learning_rate
    assert all(own / 8 <= c.lr <= own * 8 and c.skip_test for c in runs)
    assert best in [replace(c, skip_test=False) for c in runs]
    assert trials(tmp_path / "s") == pytest.approx([c.lr for c in runs])
    assert not (tmp_path / "s" / "trial").exists()


def test_a_search_goes_on_where_it_was_stopped(config, tmp_path, runs, monkeypatch):
    kept = tuning.train

    def stopped(given, *args, **options):
        if len(runs) == 1:
            raise KeyboardInterrupt
        return kept(given, *args, **options)

    monkeypatch.setattr(tuning, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        tune(config, tmp_path / "s", Search(trials=3))
    monkeypatch.setattr(tuning, "train", kept)
    tune(config, tmp_path / "s", Search(trials=3))
    assert len(runs) == 3
    tune(config, tmp_path / "s", Search(trials=3))
    assert len(runs) == 3
    with pytest.raises(InputError, match="begun with seed 0, not 1"):
        tune(replace(config, seed=1), tmp_path / "s", Search(trials=3))


def test_width_and_augmentation_are_searched_where_they_can_be(config):
    lora = replace(config, method=METHODS["lora"](), cache_features=False)
    assert tuning._axes(lora, Search()) == ["lr", "width", "augment"]
    assert tuning._as_it_is(lora, Search())["width"] == 8
    assert tuning._with(lora, {"width": 16}).method == METHODS["lora"](rank=16)
    assert tuning._axes(replace(lora, method=METHODS["bias"]()), Search()) == ["lr", "augment"]
    assert tuning._axes(lora, Search(over=("augment",))) == ["augment"]
    assert tuning._axes(config, Search()) == ["lr"]
    dense = replace(lora, task="segment", head_lr_scale=1.0)
    assert tuning._axes(dense, Search()) == ["lr", "width"]  # --recipe says what is random there


def test_a_search_of_nothing_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="width and augment: nothing to search, as mlp_head"):
        tune(config, tmp_path / "s", Search(over=("width", "augment")))
    assert not (tmp_path / "s").exists()


def test_a_trial_that_fails_is_said_in_one_line(config, tmp_path, monkeypatch, capsys):
    kept, calls = tuning.train, []

    def failing(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise tuning.LowtideError("the loss is no number")
        return kept(*args, **options)

    monkeypatch.setattr(tuning, "train", failing)
    tune(config, tmp_path / "s", Search(trials=3))
    err = capsys.readouterr().err
    assert "trial 1 failed: the loss is no number" in err and "Traceback" not in err


def test_no_time_or_no_images_to_tell_by(config, tmp_path):
    with pytest.raises(tuning.LowtideError, match="no trial ended within 1e-09 minutes"):
        tune(config, tmp_path / "short", Search(minutes=1e-9))
    with pytest.raises(InputError, match="there are none"):
        tune(replace(config, train_on_val=True), tmp_path / "none", Search(trials=1))


def test_the_command_ends_with_a_run_and_says_how_to_repeat_it(images, tmp_path, capsys):
    args = ["tune", "--model", MODEL, "--data", str(images), "--method", "linear"]
    args += ["--cache-features", "--device", "cpu", "--epochs", "2", "--trials", "2"]
    args += ["--output", str(tmp_path / "s")]
    assert main(args) == 0
    out = capsys.readouterr().out
    run = tmp_path / "s" / "best"
    assert (run / "adapter_model.safetensors").is_file()
    found = read_yaml(run / "config.yaml")
    assert f"--lr {found['lr']}" in out.splitlines()[-1]
    assert out.splitlines()[-1].startswith("lowtide train --model vit_micro_patch4_32 --data ")
    assert main(args) == 0
    assert main([*args, "--over", "[rate]"]) == 2

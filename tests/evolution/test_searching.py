"""A search from end to end: what it leaves, its limits, how it goes on, and what it refuses."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import pytest
import torch
from tinted import write_tinted

import lowtide
from lowtide import METHODS, InputError
from lowtide.cli import main
from lowtide.commands.search import USUAL
from lowtide.evolution import Search, search
from lowtide.evolution import inherit as inheriting
from lowtide.evolution.search import JOURNAL, SUPERNET
from lowtide.methods.noah import NOAH
from lowtide.planning.simulate import plan
from lowtide.training.config import RunConfig
from lowtide.tuning.adapter_files import read_tensors

MODEL = "vit_micro_patch4_32"
FEW = Search(
    widths=(1, 3),
    supernet_epochs=2,
    supernet_lr=0.01,
    generations=3,
    population=4,
    parents=2,
    mutants=1,
    crossovers=1,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_tinted(tmp_path_factory.mktemp("search"), {"train": 4, "val": 3, "test": 2})


@pytest.fixture
def config(images):
    return RunConfig(MODEL, str(images), NOAH(), epochs=1, batch_size=6, device="cpu")


def scored(folder):
    lines = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    return [line for line in lines if "score" in line]


@pytest.mark.slow
def test_it_leaves_the_generations_and_a_config_of_the_best(config, tmp_path):
    limits = replace(FEW, most_trained=9_000)
    found = search(config, tmp_path, limits)
    content = json.loads((tmp_path / "generations.json").read_text())
    every = [c for g in content["generations"] for c in g]
    assert [len(g) for g in content["generations"]] == [4, 4, 4] and len(scored(tmp_path)) == 12
    best = max(every, key=lambda c: (c["score"], -c["cost"]["trained"]))
    assert content["best"]["genes"] == best["genes"]
    assert found.method == NOAH(*(tuple(best["genes"][p]) for p in ("prompts", "lora", "adapter")))
    assert found == replace(config, method=found.method, train_on_val=True, keep="last")
    for c in every:
        method = NOAH(*(tuple(c["genes"][p]) for p in ("prompts", "lora", "adapter")))
        planned = plan(MODEL, method, num_classes=3).trainable_parameters - 3 * 193
        assert c["cost"]["trained"] == planned <= 9_000
    page = (tmp_path / "report.md").read_text()
    assert page.count("\n| ") == 4 and str(list(found.method.lora)) in page
    summary = json.loads((tmp_path / SUPERNET / "summary.json").read_text())
    assert summary["test_accuracy"] is None and summary["config"]["method"]["lora"] == [3] * 6


@pytest.mark.slow
def test_the_limit_on_memory_is_the_plan_of_the_run_itself(config, tmp_path):
    widest = plan(MODEL, NOAH((3,), (3,), (3,)), step=config, num_classes=3).peak_bytes
    most = int(0.96 * widest)
    some = replace(FEW, most_trained=0, most_memory=str(most), generations=2, population=3)
    search(config, tmp_path, some)
    content = json.loads((tmp_path / "generations.json").read_text())
    for c in (c for g in content["generations"] for c in g):
        method = NOAH(*(tuple(c["genes"][p]) for p in ("prompts", "lora", "adapter")))
        peak = plan(MODEL, method, step=config, num_classes=3).peak_bytes
        assert c["cost"]["peak_bytes"] == peak <= most
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    assert any(line.get("peak_bytes", 0) > most for line in lines)


@pytest.mark.slow
def test_it_goes_on_after_a_kill_wherever_that_was(config, tmp_path, monkeypatch):
    whole = search(config, tmp_path / "whole", FEW)
    calls, kept = [], inheriting.score_of

    def stopped(run, model, samples):
        calls.append(samples)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return kept(run, model, samples)

    class Stop(lowtide.training.callbacks.Callback):
        def on_epoch(self, epoch):
            raise KeyboardInterrupt

    fit = inheriting.train

    def cut(config, folder, *, callbacks, **options):
        return fit(config, folder, callbacks=[*callbacks, Stop()], **options)

    monkeypatch.setattr(inheriting, "train", cut)
    with pytest.raises(KeyboardInterrupt):
        search(config, tmp_path / "cut", FEW)
    monkeypatch.setattr(inheriting, "train", fit)
    monkeypatch.setattr(inheriting, "score_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        search(config, tmp_path / "cut", FEW)
    assert search(config, tmp_path / "cut", FEW) == whole
    assert len(calls) == 12 + 1
    for name in ("generations.json", "report.md"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
    weights = [
        read_tensors(tmp_path / f / SUPERNET / "adapter_model.safetensors")
        for f in ("cut", "whole")
    ]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[1])
    assert search(config, tmp_path / "cut", FEW) == whole and len(calls) == 13


def test_another_search_in_its_folder_is_refused(config, tmp_path, monkeypatch):
    searching = importlib.import_module("lowtide.evolution.search")
    monkeypatch.setattr(searching, "trained_supernet", _never)
    with pytest.raises(KeyboardInterrupt):
        search(config, tmp_path, FEW)
    with pytest.raises(InputError, match=r"begun with widths \[1, 3\], not \[1, 2\]"):
        search(config, tmp_path, replace(FEW, widths=(1, 2)))
    with pytest.raises(InputError, match="begun with batch_size 6, not 5"):
        search(replace(config, batch_size=5), tmp_path, FEW)


def _never(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": METHODS["lora"]()}, "widths of noah, not of lora"),
        ({"train_on_val": True}, "leave --train-on-val out"),
        ({"memory_budget": "1GiB"}, "--most-memory"),
        ({"cache_features": True}, "leave --cache-features out"),
    ],
)
def test_options_that_do_not_fit_are_refused(config, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        search(replace(config, **change), tmp_path / "s", FEW)
    assert not (tmp_path / "s").exists()


def test_a_search_needs_images_to_compare_on(tmp_path):
    data = write_tinted(tmp_path / "d", {"train": 2, "test": 1})
    config = RunConfig(MODEL, str(data), NOAH(), val_fraction=0.0, device="cpu")
    with pytest.raises(InputError, match="there are none"):
        search(config, tmp_path / "s", FEW)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"widths": ()}, "widths must hold"),
        ({"most_memory": "much"}, "no size in bytes"),
        ({"depths": (7,)}, "1 to the backbone's 6 blocks, not 7"),
    ],
)
def test_wrong_numbers_are_refused(config, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        search(config, tmp_path / "s", replace(FEW, **options))


@pytest.mark.slow
def test_the_command_ends_in_a_run_of_what_was_found(images, tmp_path, capsys):
    args = ["search", "--model", MODEL, "--data", str(images), "--device", "cpu"]
    args += ["--output", str(tmp_path), "--supernet-epochs", "1", "--generations", "1"]
    args += ["--population", "2", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "6"]
    assert main(args) == 0
    told = capsys.readouterr().out
    assert "--method noah" in told and "--train-on-val" in told
    summary = json.loads((tmp_path / "best" / "summary.json").read_text())
    best = json.loads((tmp_path / "generations.json").read_text())["best"]
    assert summary["config"]["method"] == best["method"]
    assert summary["config"]["weight_decay"] == 1e-4 and summary["config"]["drop_path"] == 0.1
    assert summary["test_accuracy"] is not None
    assert main(args) == 0  # finished: nothing is trained again


def test_the_paper_s_numbers_are_the_defaults():
    options = Search()
    assert (options.widths, options.most_trained) == ((1, 5, 10), 640_000)
    assert (options.supernet_epochs, options.supernet_lr) == (500, 5e-4)
    assert (options.generations, options.population, options.parents) == (15, 50, 10)
    assert (options.mutants, options.crossovers) == (25, 25)
    assert (options.mutate_part, options.mutate_depth) == (0.2, 0.4)
    retrained = RunConfig.from_dict({"model": "m", "data": "d", **USUAL})
    assert (retrained.epochs, retrained.lr, retrained.weight_decay) == (100, 1e-3, 1e-4)
    assert (retrained.batch_size, retrained.warmup_epochs, retrained.min_lr) == (64, 10, 1e-5)
    assert (retrained.drop_path, retrained.method) == (0.1, NOAH())

"""The running average: its recursion, its place, and a run that keeps one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import lowtide.training.loop
from lowtide import METHODS, InputError
from lowtide.training.config import RunConfig
from lowtide.training.ema import WeightAverage
from lowtide.training.loop import train


def test_the_recursion_written_out():
    model = nn.Linear(3, 2).double()
    model.bias.requires_grad_(False)
    average, seen = WeightAverage(model, 0.9), [model.weight.detach().clone()]
    for _ in range(5):
        model.weight.data = torch.randn(2, 3, dtype=torch.float64)
        average.update()
        seen.append(model.weight.detach().clone())
    wanted = 0.9**5 * seen[0] + sum(0.1 * 0.9 ** (5 - i) * seen[i] for i in range(1, 6))
    assert len(average.averages) == 1
    torch.testing.assert_close(average.averages[0], wanted, rtol=1e-12, atol=0)


def test_it_stands_in_for_the_weights_and_gives_way():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.5)
    own = model.weight.detach().clone()
    average.averages[0].zero_()
    with pytest.raises(RuntimeError), average.average_parameters():
        assert not model.weight.any()
        raise RuntimeError
    assert model.weight.equal(own)
    assert not average.averages[0].any()


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("red", "green"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return RunConfig(
        "vit_micro_patch4_32",
        str(tmp_path / "images"),
        method=METHODS["bias"](),
        epochs=2,
        batch_size=8,
        lr=1e-2,
        warmup_epochs=0.0,
        ema=0.9,
        keep="last",
        device="cpu",
    )


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_a_run_saves_the_average_of_what_it_trained(config, tmp_path, monkeypatch):
    kept = []

    class Spy(WeightAverage):
        def __init__(self, *args):
            super().__init__(*args)
            kept.append(self)

    monkeypatch.setattr(lowtide.training.loop, "WeightAverage", Spy)
    train(config, tmp_path / "a")
    train(replace(config, ema=0.0), tmp_path / "b")
    assert len(kept) == 1
    saved, plain = weights(tmp_path / "a"), weights(tmp_path / "b")
    values = {tuple(v.flatten().tolist()) for v in saved.values()}
    assert {tuple(v.flatten().tolist()) for v in kept[0].averages} <= values
    assert saved.keys() == plain.keys()
    assert not all(saved[k].equal(plain[k]) for k in saved)


def test_a_killed_run_resumes_with_its_average(config, tmp_path, monkeypatch):
    train(config, tmp_path / "whole")
    save = lowtide.training.loop.save

    def stop(run, optimizer):
        save(run, optimizer)
        raise KeyboardInterrupt

    monkeypatch.setattr(lowtide.training.loop, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "killed")
    monkeypatch.undo()
    train(config, tmp_path / "killed", continues=True)
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(ours[k].equal(theirs[k]) for k in ours)


@pytest.mark.parametrize("ema", [-0.1, 1.0])
def test_impossible_decays_are_refused(ema):
    with pytest.raises(InputError, match="ema must be a number from 0 below 1"):
        RunConfig("m", "d", ema=ema)

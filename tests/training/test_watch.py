"""Trackers, the time limit and the device a user names."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from tinted import write_tinted

from lowtide import InputError
from lowtide.cli import main
from lowtide.training import time_limit
from lowtide.training.devices import device_of
from lowtide.training.time_limit import parse_seconds
from lowtide.tuning.adapter_files import read_tensors
from lowtide.values import Device, read

EPOCHS = 3


def train(images, folder, *more):
    words = ["train", "--model", "test_vit", "--data", images, "--pretrained", "false"]
    words += ["--image-size", "32", "--epochs", EPOCHS, "--batch-size", "6", "--device", "cpu"]
    return main([*map(str, [*words, "--output", folder, *more])])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_tinted(tmp_path_factory.mktemp("watch"), {"train": 4, "val": 1, "test": 1})


@pytest.mark.filterwarnings("ignore")
def test_a_run_out_of_time_is_continued_and_ends_as_if_it_had_not_stopped(
    images, tmp_path, capsys, monkeypatch
):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(images, whole, "--log", "csv,tensorboard") == 0
    rows = list(csv.DictReader((whole / "metrics.csv").open()))
    assert [r["step"] for r in rows if r["name"] == "loss"] == ["1", "2", "3", "4", "5", "6"]
    epochs = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    told = [float(r["value"]) for r in rows if r["name"] == "train_loss"]
    assert told == [e["train_loss"] for e in epochs]
    events = tensorboard.EventAccumulator(str(next(whole.rglob("events.out*0"))))
    events.Reload()
    losses = [float(r["value"]) for r in rows if r["name"] == "loss"]
    assert [s.value for s in events.Scalars("loss")] == pytest.approx(losses, rel=1e-5)

    # The clock jumps by an hour in the middle of the second epoch.
    now = iter([*[0.0] * 6, *[3600.0] * 999])
    monkeypatch.setattr(time_limit, "monotonic", lambda: next(now))
    capsys.readouterr()
    assert train(images, stopped, "--time-limit", "30m", "--log", "csv") == 124
    said = capsys.readouterr().err.splitlines()[-1]
    assert "with 1 of 3 epochs kept" in said
    assert f"lowtide train --resume {stopped} --time-limit 30m continues" in said
    monkeypatch.undo()
    assert main(["train", "--resume", str(stopped), "--log", "csv"]) == 0
    a, b = (read_tensors(f / "adapter_model.safetensors") for f in (whole, stopped))
    assert all(torch.equal(a[k], b[k]) for k in a)
    again = list(csv.DictReader((stopped / "metrics.csv").open()))
    kept = {"loss", "lr", "train_loss"}
    assert [r for r in again if r["name"] in kept] == [r for r in rows if r["name"] in kept]


def test_an_epoch_line_says_speed_memory_and_what_is_left(images, tmp_path, capsys):
    assert train(images, tmp_path / "run") == 0
    line = next(s for s in capsys.readouterr().err.splitlines() if s.startswith("epoch   1"))
    assert "images/s" in line and "MiB planned" in line and line.endswith("left)")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--log", "csvv"], "did you mean csv"),
        (["--log", "dvclive"], "pip install dvclive"),
        (["--time-limit", "soon"], "such as 2h"),
        (["--device", "gpu"], "unknown --device 'gpu'"),
        (["--device", "cuda:7"], "not on this machine: expected auto, cpu"),
        (["--device", "cpu", "--amp", "fp16"], "amp fp16 needs an accelerator"),
        (["--log", ""], "--log is empty"),
        (["--opt", "adahessian"], "none that a meter can follow: expected another opt"),
    ],
)
def test_what_is_not_here_is_refused_in_one_line_and_leaves_nothing(
    images, tmp_path, capsys, words, said
):
    assert train(images, tmp_path / "run", *words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_times_and_devices():
    given = ("90s", "30m", "2h", "1d", "1h30m")
    assert [parse_seconds(t) for t in given] == [90, 1800, 7200, 86400, 5400]
    for wrong in ("", "2", "h", "-1h", "1m1h", "0s"):
        with pytest.raises(InputError, match="such as 2h"):
            parse_seconds(wrong)
    assert read("device", Device, "cuda:1") == "cuda:1" and device_of("cpu").type == "cpu"
    if not torch.backends.mps.is_available():
        with pytest.raises(InputError, match="mps is not on this machine"):
            device_of("mps")

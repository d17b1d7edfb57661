"""Disks that are full, folders that take nothing, checkpoints of others: one line, no half file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tinted import write_tinted

import lowtide.training.loop
from lowtide import METHODS, LowtideError
from lowtide.cli import main
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.tuning.adapter_files import write_tensors

CHECKPOINT = "checkpoint.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, and one that stopped after its first epoch."""
    root = tmp_path_factory.mktemp("disk")
    write_tinted(root / "data", {"train": 4, "val": 2, "test": 2})
    options = {"epochs": 1, "batch_size": 6, "warmup_epochs": 0.0, "device": "cpu", "ema": 0.5}
    config = RunConfig("vit_micro_patch4_32", str(root / "data"), METHODS["bias"](), **options)
    train(config, root / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowtide.training.loop, "finish", lambda *_: {})
        train(config, root / "stopped")
    return root


def complaint(capsys, code, *args):
    capsys.readouterr()
    assert main([str(a) for a in args]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lowtide: ") and err.count("\n") == 1
    return err


@contextlib.contextmanager
def room_for(size):
    """Let no file grow beyond some bytes, as a full disk would not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def writers(run, folder):
    """Commands that write one file, by that file."""
    figure = ("--batch-size", 4, "--device", "cpu", "--output")
    cka = ("inspect", "cka", run, *figure)
    return {
        folder / "m.safetensors": ("merge", run, "--output", folder / "m.safetensors"),
        folder / "p.png": ("inspect", "parameters", run, "--output", folder / "p.png"),
        folder / "p.svg": ("inspect", "parameters", run, "--output", folder / "p.svg"),
        folder / "c.svg": (*cka, folder / "c.svg"),
    }


def test_a_full_disk_is_one_line_and_leaves_what_was_there(made, tmp_path, capsys):
    for path, command in writers(made / "run", tmp_path).items():
        path.write_text("old")
        with room_for(8192):
            assert str(path) in complaint(capsys, 1, *command)
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        path.unlink()


def test_a_folder_that_takes_nothing_is_one_line_before_anything_is_computed(
    made, capsys, monkeypatch
):
    def computed(*args, **options):
        raise AssertionError

    for module in ("merge", "inspect"):
        monkeypatch.setattr(f"lowtide.commands.{module}.open_given", computed)
    monkeypatch.setattr("lowtide.commands.inspect.run_changes", computed)
    for path, command in writers(made / "run", Path("/proc")).items():
        assert str(path) in complaint(capsys, 2, *command)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_answers_to_a_full_disk_are_one_line(made):
    image = next((made / "data/test").rglob("*.png"))
    command = [sys.executable, "-m", "lowtide", "predict", made / "run", image, "--device", "cpu"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "lowtide: No space left on device\n")


def test_tensors_that_cannot_be_written_are_named(tmp_path):
    path = tmp_path / "t.safetensors"
    with room_for(4096), pytest.raises(LowtideError, match=f"{path} cannot be written: .*"):
        write_tensors(path, {"a": torch.zeros(9000)})
    assert not list(tmp_path.iterdir())


def changed(folder, header=lambda h: None, tensors=lambda t: None):
    """Write a checkpoint anew with another header, or other tensors; its hash is right."""
    path = folder / CHECKPOINT
    state = load_file(path)
    with safe_open(path, "pt") as file:
        kept = {k: json.loads(v) for k, v in file.metadata().items() if k in HEADER}
    header(kept)
    tensors(state)
    write_tensors(path, state, {k: json.dumps(v) for k, v in kept.items()})


HEADER = ("record", "plain", "scaler", "version")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (lambda h: h.pop("record"), "record is missing"),
        (lambda h: h.pop("plain"), "plain is missing"),
        (lambda h: h.pop("scaler"), "scaler is missing"),
        (lambda h: h.update(record=[1]), r"record is \[1\], not a mapping"),
        (lambda h: h.update(plain=3), "plain is 3, not a mapping"),
        (lambda h: h.update(scaler="x"), "scaler is 'x', not a mapping"),
        (lambda h: h.update(version=2), "version 2, and this lowtide goes on from version 1"),
        (lambda h: h["record"].pop("history"), "record.history is missing"),
        (lambda h: h["record"].update(history={}), "record.history is {}, not a list"),
        (lambda h: h["record"].update(data=1), "record.data is 1, not"),
        (lambda h: h["record"].update(measured_bytes="1"), "record.measured_bytes is '1', not"),
        (lambda h: h["plain"].update({"optimiser/x/step": 1}), "'optimiser/x/step' is neither"),
        (lambda h: h["plain"].update({"nobody/0": 1}), "'nobody/0' is neither"),
        (lambda h: h["plain"].update({"optimiser/999/step": 1}), "of parameter 999"),
    ],
)
def test_a_checkpoint_that_says_something_else_is_refused(made, tmp_path, capsys, header, said):
    run = shutil.copytree(made / "stopped", tmp_path / "run")
    changed(run, header)
    before = (run / CHECKPOINT).read_bytes()
    line = complaint(capsys, 2, "train", "--resume", run)
    assert CHECKPOINT in line and re.search(said, line)
    assert (run / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (lambda t: t.pop("average/0"), "running averages"),
        (lambda t: t.update({"average/0": torch.zeros(1, 7)}), "running averages"),
        (lambda t: t.update({"average/900": torch.zeros(1)}), "running averages"),
    ],
)
def test_a_checkpoint_with_other_averages_is_refused(made, tmp_path, capsys, tensors, said):
    run = shutil.copytree(made / "stopped", tmp_path / "run")
    changed(run, tensors=tensors)
    assert said in complaint(capsys, 2, "train", "--resume", run)


def test_a_checkpoint_without_a_version_is_of_the_first(made, tmp_path):
    run = shutil.copytree(made / "stopped", tmp_path / "run")
    changed(run, lambda h: h.pop("version"))
    assert main(["train", "--resume", str(run)]) == 0

"""A run folder: one owner at a time, options that stay, and never an old model for a new run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from tinted import write_tinted

import lowtide.training.loop
from lowtide import METHODS, InputError
from lowtide.bench.run import _run
from lowtide.cli import main
from lowtide.training.config import RunConfig, read_yaml
from lowtide.training.loop import train
from lowtide.training.owner import Busy, owned
from lowtide.training.resume import read_header
from lowtide.training.split import Split
from lowtide.tuning.adapter_files import write_tensors

HOLD = """
import sys, time
from pathlib import Path
from lowtide.training.owner import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, and one that was interrupted after its first epoch."""
    root = tmp_path_factory.mktemp("owner")
    write_tinted(root / "data", {"train": 4, "val": 2, "test": 2})
    config = RunConfig(
        "vit_micro_patch4_32",
        str(root / "data"),
        METHODS["linear"](),
        epochs=2,
        batch_size=6,
        warmup_epochs=0.0,
        device="cpu",
    )
    train(config, root / "run")
    interrupt(config, root / "stopped")
    return root


def interrupt(config, folder, **options):
    """Stop a run at the end of its first epoch."""
    save = lowtide.training.loop.save

    def stop(*args):
        save(*args)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowtide.training.loop, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder, **options)


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made / "run", tmp_path / "run")


@pytest.fixture
def stopped(made, tmp_path):
    return shutil.copytree(made / "stopped", tmp_path / "stopped")


def config_of(folder):
    return RunConfig.from_dict(read_yaml(folder / "config.yaml"))


def refused(capsys, *args, code=2):
    capsys.readouterr()
    assert main([str(a) for a in args]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@pytest.fixture
def holder():
    """Start a process that owns a folder."""
    held = []

    def start(folder):
        command = [sys.executable, "-c", HOLD, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        held.append(process)
        assert process.stdout.readline() == "mine\n"
        return process

    yield start
    for process in held:
        process.kill()
        process.communicate()


def test_a_second_owner_gets_one_line_and_a_crash_frees_the_folder(stopped, capsys, holder):
    process = holder(stopped)
    said = refused(capsys, "train", "--resume", stopped, code=1)
    assert "another process" in said
    with pytest.raises(Busy):
        train(config_of(stopped), stopped, overwrite=True)
    _run(stopped, config_of(stopped))
    assert not (stopped / "failed.txt").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["train", "--resume", str(stopped)]) == 0


def test_processes_of_one_run_own_it_together(tmp_path, monkeypatch):
    with owned(tmp_path / "run"):
        monkeypatch.setenv("RANK", "1")
        with owned(tmp_path / "run"):
            pass


def test_a_folder_that_stays_empty_goes_again(tmp_path):
    with owned(tmp_path / "a/b"):
        pass
    assert not (tmp_path / "a").exists()
    (tmp_path / "c").mkdir()
    with owned(tmp_path / "c/d"):
        (tmp_path / "c/d/file").touch()
    assert (tmp_path / "c/d/file").exists()


@pytest.mark.parametrize("command", ["eval", "predict", "merge"])
def test_an_unfinished_run_never_answers_with_the_old_model(run, capsys, command, made):
    changed = replace(config_of(run), lr=0.5)
    with pytest.raises(InputError):
        train(replace(changed, data="/no/such"), run, overwrite=True)
    assert main(["eval", str(run), "--device", "cpu"]) == 0  # what is refused changes nothing
    interrupt(changed, run, overwrite=True)
    more = {"predict": [made / "data/test/red/0.png"], "merge": ["--output", run / "m.safetensors"]}
    assert "is not finished" in refused(capsys, command, run, *more.get(command, []))
    assert train(changed, run, continues=True).config.lr == 0.5


def test_a_killed_overwrite_leaves_no_old_model(run, capsys, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Split, "write", die)
    with pytest.raises(KeyboardInterrupt):
        train(config_of(run), run, overwrite=True)
    assert "is not finished" in refused(capsys, "eval", run)


def test_an_adapter_that_is_no_run_is_not_overwritten_unasked(run):
    config = config_of(run)
    (run / "config.yaml").unlink()
    with pytest.raises(InputError, match="already holds adapter_config.json"):
        train(config, run)


@pytest.mark.parametrize("option", [["--lr", "0.1"], ["--epochs", "3"], ["--method", "bias"]])
def test_a_run_continues_as_it_began(run, stopped, capsys, option):
    before = (stopped / "config.yaml").read_text()
    for folder, state in ((stopped, "was begun with"), (run, "is finished and was run with")):
        assert state in refused(capsys, "train", "--resume", folder, *option)
    assert (stopped / "config.yaml").read_text() == before
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 0
    assert "is finished: nothing was trained" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_finished_run_without_its_adapter_is_no_finished_run(run, capsys, damage):
    adapter = run / "adapter_model.safetensors"
    adapter.unlink() if damage == "gone" else adapter.write_bytes(adapter.read_bytes()[:-9])
    assert "adapter_model.safetensors" in refused(capsys, "train", "--resume", run)


@pytest.mark.parametrize(
    "option", [["--output", "x"], ["--overwrite"], ["--config", "x"], ["--preset=vpt"]]
)
def test_what_says_it_twice_is_refused(stopped, capsys, option):
    assert f"{option[0][:8]}" in refused(capsys, "train", "--resume", stopped, *option)


def test_a_run_may_move(made, stopped, tmp_path):
    data = shutil.copytree(made / "data", tmp_path / "elsewhere")
    assert main(["train", "--resume", str(stopped), "--data", str(data)]) == 0
    assert config_of(stopped).data == str(data)


@pytest.mark.parametrize("text", ["", "[]", '{"a": [1, 2]}', '{"config": '])
def test_a_damaged_summary_is_one_line(run, capsys, text):
    (run / "summary.json").write_text(text)
    assert "summary.json" in refused(capsys, "train", "--resume", run)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(made, tmp_path, capsys):
    (tmp_path / "file").touch()
    args = ["train", "--model", "vit_micro_patch4_32", "--data", "/no/such", "--output"]
    for place in (tmp_path / "file", tmp_path / "file/x", "/proc/x", tmp_path / ("n" * 300)):
        assert "/no/such" not in refused(capsys, *args, place)


def rewritten(folder, **fields):
    """Write a checkpoint's record anew with other fields; its hash is right."""
    path = folder / "checkpoint.safetensors"
    header = read_header(path).to_dict()
    header["record"] |= fields
    write_tensors(path, load_file(path), {k: json.dumps(v) for k, v in header.items()})


def test_a_damaged_line_of_a_checkpoint_is_named_with_its_file(stopped, capsys):
    path = stopped / "checkpoint.safetensors"
    line = read_header(path).record.history[0].to_dict()
    rewritten(stopped, history=[{**line, "seconds": "soon"}])
    said = refused_after_notes(capsys, "train", "--resume", stopped)
    assert f"from {path}: in its header record.history.0.seconds is 'soon', not a number" in said


def test_another_number_of_processes_does_not_continue_a_run(stopped, capsys):
    assert read_header(stopped / "checkpoint.safetensors").record.processes == 1
    rewritten(stopped, processes=2)
    said = refused_after_notes(capsys, "train", "--resume", stopped)
    assert "begun by 2 processes" in said and "torchrun --nproc_per_node=2" in said


def refused_after_notes(capsys, *args):
    capsys.readouterr()
    assert main([str(a) for a in args]) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("given", "said"), [({}, 0), ({"ACCELERATE_USE_CPU": "True"}, 1)])
def test_a_launcher_that_starts_one_process_is_said(
    made, tmp_path, capsys, monkeypatch, given, said
):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    train(replace(config_of(made / "run"), epochs=1), tmp_path / "run")
    assert capsys.readouterr().err.count("accelerate launch starts no more") == said

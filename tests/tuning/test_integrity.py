"""What was saved is what is loaded: what is damaged, infinite or mistyped is refused in a line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tinted import write_tinted

import lowtide.training.loop
from lowtide import METHODS, InputError
from lowtide.cli import main
from lowtide.inference.evaluate import open_run
from lowtide.paths import write_text
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.tuning.adapter_files import content_hash, read_tensors, write_tensors

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, and one that stopped after its first epoch."""
    root = tmp_path_factory.mktemp("integrity")
    write_tinted(root / "data", {"train": 6, "val": 2, "test": 2})
    options = {"epochs": 1, "batch_size": 9, "warmup_epochs": 0.0, "device": "cpu"}
    config = RunConfig(
        "vit_micro_patch4_32", str(root / "data"), METHODS["lora"](rank=1), **options
    )
    train(config, root / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowtide.training.loop, "finish", lambda *_: {})
        train(config, root / "stopped")
    return root


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made / "run", tmp_path / "run")


def refused(capsys, *args):
    capsys.readouterr()
    assert main([str(a) for a in args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def commands(run, image):
    return (
        ("eval", run, "--device", "cpu"),
        ("predict", run, image, "--device", "cpu"),
        ("merge", run, "--output", run / "m.safetensors"),
    )


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [-1, -9_001])
def test_a_flipped_bit_of_an_adapter_is_seen(made, run, capsys, at):
    flip(run / WEIGHTS, at)
    for command in commands(run, made / "data/test/red/0.png"):
        assert f"{WEIGHTS} is damaged" in refused(capsys, *command)


def test_a_flipped_bit_of_a_checkpoint_is_seen(made, tmp_path, capsys):
    run = shutil.copytree(made / "stopped", tmp_path / "run")
    path = run / "checkpoint.safetensors"
    whole = path.read_bytes()
    flip(path, -1)
    assert "is damaged" in refused(capsys, "train", "--resume", run)
    path.write_bytes(whole.replace(b'train_loss\\":1', b'train_loss\\":2', 1))
    at = whole.index(b"train_loss") + len(b'train_loss\\": ')
    path.write_bytes(whole)
    flip(path, at)  # a digit of the history, in the header
    assert "is damaged" in refused(capsys, "train", "--resume", run)


def test_the_adapter_of_another_run_is_seen(made, run, capsys):
    state = load_file(run / WEIGHTS)
    write_tensors(run / WEIGHTS, {k: v + 1 for k, v in state.items()})
    assert "of another run" in refused(capsys, "eval", run, "--device", "cpu")


def rewrite(run, change):
    """Save an adapter as another program would, and as it was before there were hashes."""
    state = {k: change(v) for k, v in load_file(run / WEIGHTS).items()}
    save_file(state, run / WEIGHTS)
    config = json.loads((run / "adapter_config.json").read_text())
    del config["content_sha256"]
    (run / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.clone().index_fill_(0, torch.tensor([0]), float("nan")), "NaN or infinity"),
        (lambda v: v.clone().index_fill_(0, torch.tensor([0]), float("-inf")), "NaN or infinity"),
        (lambda v: v.long(), "int64"),
        (lambda v: v > 0, "bool"),
        (lambda v: v.to(torch.complex64), "complex64"),
        (lambda v: v.to(torch.uint8), "uint8"),
    ],
)
def test_what_is_no_real_number_is_refused(made, run, capsys, change, said):
    try:
        rewrite(run, change)
    except KeyError:
        pytest.skip(f"this version of safetensors writes no {said}")
    capsys.readouterr()
    assert main(["eval", str(run), "--device", "cpu"]) == 2
    assert said in capsys.readouterr().err


def test_an_adapter_without_a_hash_still_loads_and_says_so(run, capsys):
    rewrite(run, lambda v: v.half())
    assert main(["eval", str(run), "--json", "--device", "cpu"]) == 0
    assert "earlier version" in capsys.readouterr().err


def test_the_hash_is_of_names_kinds_shapes_and_bytes(tmp_path):
    a = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.int64)}
    others = [
        {"a": a["a"], "c": a["b"]},
        {"a": a["a"].view(2, 3), "b": a["b"]},
        {"a": a["a"].view(torch.int32), "b": a["b"]},
        {"a": a["a"].flip(0), "b": a["b"]},
        {"a": a["a"]},
    ]
    assert content_hash(dict(reversed(a.items()))) == content_hash(a)
    assert len({content_hash(a), *map(content_hash, others)}) == 6
    write_tensors(tmp_path / "a.safetensors", a, {"x": "y"})
    assert content_hash(read_tensors(tmp_path / "a.safetensors")) == content_hash(a)
    with safe_open(tmp_path / "a.safetensors", "pt") as f:
        header = f.metadata()
    save_file(a, tmp_path / "a.safetensors", {**header, "x": "z"})
    with pytest.raises(InputError, match="is damaged"):
        read_tensors(tmp_path / "a.safetensors")


def test_one_bad_file_does_not_silence_the_others(made, run, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    good, other = made / "data/test/red/0.png", tmp_path / "other.png"
    other.write_bytes(good.read_bytes())
    paths = [good, tmp_path / "bad.png", tmp_path / "gone.png", other]
    assert main(["predict", str(run), *map(str, paths), "--batch-size", "1"]) == 2
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [a["path"] for a in answers] == [str(good), str(other)]
    assert "bad.png" in err and "gone.png" in err and err.count("\n") == 2


def test_an_answer_that_is_no_number_is_never_printed(made, run, capsys, monkeypatch):
    monkeypatch.setattr(
        "lowtide.inference.evaluate._outputs", lambda t, x: torch.full((len(x), 3), torch.nan)
    )
    assert main(["predict", str(run), str(made / "data/test/red/0.png")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "is no number" in err


def test_brighter_images_than_those_trained_on_are_said(made, run, tmp_path, capsys):
    config = json.loads((run / "adapter_config.json").read_text())
    config["preprocessing"]["bits"] = 12
    (run / "adapter_config.json").write_text(json.dumps(config))
    for name, value in (("dark", 4095), ("bright", 4096)):
        image = Image.fromarray(np.full((32, 32), value, np.uint16))
        image.save(tmp_path / f"{name}.png")
    for name, times in (("dark", 0), ("bright", 1)):
        assert main(["predict", str(run), str(tmp_path / f"{name}.png")]) == 0
        assert capsys.readouterr().err.count("more than the 12 bits") == times
    assert open_run(run, device="cpu").preprocessing.bits == 12


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(2)})

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowtide.paths.os.fsync", full)
    for write in (
        lambda: write_tensors(path, {"a": torch.zeros(2)}),
        lambda: write_text(tmp_path / "t", "x"),
    ):
        with pytest.raises(OSError, match="No space"):
            write()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert read_tensors(path)["a"].tolist() == [1, 1]

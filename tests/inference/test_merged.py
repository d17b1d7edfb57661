"""A merged file loads in plain timm by the line that is printed, and knows its classes."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tinted import write_tinted

from lowtide import METHODS, InputError
from lowtide.cli import main
from lowtide.inference.evaluate import open_run
from lowtide.inference.merged import open_merged
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.tuning.adapter_files import read_metadata
from lowtide.tuning.backbone import create


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_tinted(tmp_path_factory.mktemp("merged"), {"train": 4, "val": 1, "test": 2})


@pytest.fixture(scope="module")
def merged(images, tmp_path_factory):
    """A run on images of another size, and its merged file."""
    root = tmp_path_factory.mktemp("one")
    run, path = root / "run", root / "m.safetensors"
    train(config(images, "vit_micro_patch4_32", 40), run)
    assert main(["merge", str(run), "--output", str(path)]) == 0
    return run, path


def config(images, model, size):
    return RunConfig(
        model,
        str(images),
        METHODS["ssf" if "resnet" in model else "lora"](),
        pretrained=False,
        image_size=size,
        epochs=1,
        batch_size=6,
        warmup_epochs=0.0,
        device="cpu",
    )


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("vit_micro_patch4_32", 40),
        ("test_vit", 96),
        ("test_vit", None),
        ("test_resnet", 64),
        ("test_convnext", 96),
    ],
)
def test_the_printed_line_loads_the_model_as_it_was_trained(images, tmp_path, capsys, model, size):
    train(config(images, model, size), tmp_path / "run")
    trained = open_run(tmp_path / "run", device="cpu")
    capsys.readouterr()
    out = tmp_path / "m's.safetensors"
    assert main(["merge", str(tmp_path / "run"), "--output", str(out)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    plain = eval(line, {"timm": timm}).eval()
    x = torch.randn(2, 3, *trained.preprocessing.size)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), trained.tuned(x), rtol=1e-4, atol=1e-5)


def test_a_merged_file_answers_as_the_run_does(merged, images, capsys):
    run, path = merged
    files = [str(p) for p in sorted((images / "test").rglob("*.png"))]
    said = []
    for model in (run, path):
        capsys.readouterr()
        assert main(["predict", str(model), *files, "--device", "cpu"]) == 0
        said.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [a["class"] for a in said[0]] == [a["class"] for a in said[1]]
    for one, other in zip(*said, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    scores = []
    for model, more in ((run, []), (path, ["--data", str(images)])):
        assert main(["eval", str(model), "--json", "--device", "cpu", *more]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    for name in ("class_accuracy", "confusion"):
        assert scores[0].pop(name) == scores[1].pop(name)
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def refused(capsys, *args):
    capsys.readouterr()
    assert main([str(a) for a in args]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_what_a_merged_file_cannot_do_is_one_line(merged, tmp_path, capsys):
    _, path = merged
    assert "give --data" in refused(capsys, "eval", path)
    assert "is a file" in refused(capsys, "merge", path, "--output", tmp_path / "n.safetensors")
    plain = tmp_path / "plain.safetensors"
    save_file(load_file(path), plain)
    assert "not written by lowtide merge" in refused(capsys, "predict", plain, "x.png")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    plain.write_bytes(content)
    assert "is damaged" in refused(capsys, "predict", plain, "x.png")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "vit_nowhere"},
        {"classes": ["a"]},
        {"classes": 3},
        {"classes": ["a", "a", "b"]},
        {"options": {"num_classes": 10**9}},
        {"options": {"num_classes": 3}},
        {"options": {"num_classes": 3, "img_size": "big"}},
        {"preprocessing": {}},
        {"augment": "much"},
        {"model": "test_vit"},
    ],
)
def test_a_strangers_header_is_refused(merged, tmp_path, change):
    _, path = merged
    header = json.loads(read_metadata(path)["lowtide"])
    header |= change
    save_file(load_file(path), tmp_path / "m.safetensors", {"lowtide": json.dumps(header)})
    with pytest.raises(InputError):
        open_merged(tmp_path / "m.safetensors", device="cpu")


@pytest.mark.parametrize(("size", "near"), [(33, "32 or 36"), (3, "4")])
def test_a_size_that_cuts_patches_is_refused(size, near):
    with pytest.raises(InputError, match=f"no multiple of that: give {near}"):
        create("vit_micro_patch4_32", image_size=size)

"""What is exported answers as the run does, with any method, and says what its numbers mean."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from tinted import write_tinted

from lowtide import METHODS
from lowtide.cli import main
from lowtide.inference.evaluate import open_run
from lowtide.inference.merged import open_merged
from lowtide.training.config import RunConfig
from lowtide.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore")
FILES = {"onnx": "m.onnx", "torchscript": "m.pt", "safetensors": "m.safetensors", "peft": "peft"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_tinted(tmp_path_factory.mktemp("export"), {"train": 4, "val": 1, "test": 1})


def run(images, folder, method="lora", model="test_vit", **options):
    options = {"image_size": 64, "augment": "none", **options}
    train(
        RunConfig(
            model,
            str(images),
            METHODS[method](),
            pretrained=False,
            epochs=1,
            batch_size=6,
            warmup_epochs=0.0,
            lr=0.01,
            device="cpu",
            **options,
        ),
        folder,
    )
    return folder


def export(folder, form, output):
    return main(["export", str(folder), "--format", form, "--output", str(output)])


@torch.no_grad()
def answers(folder):
    trained = open_run(folder, device="cpu")
    x = torch.randn(5, 3, *trained.preprocessing.size)
    return trained, x, trained.tuned(x)


def onnx_says(path, x):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), said


def torchscript_says(path, x):
    said = dict.fromkeys(("classes", "preprocessing", "model"), "")
    model = torch.jit.load(str(path), _extra_files=said)
    return model(x), {k: v.decode() for k, v in said.items()}


SAYS = {"onnx": onnx_says, "torchscript": torchscript_says}


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """One that merges, from weights in few bits, and one that does not."""
    root = tmp_path_factory.mktemp("runs")
    return {
        "lora": run(images, root / "lora", frozen_dtype="nf4", augment="crop"),
        "dtl": run(images, root / "dtl", "dtl"),
    }


@pytest.mark.parametrize(
    ("form", "method"), [("onnx", "lora"), ("onnx", "dtl"), ("torchscript", "dtl")]
)
def test_a_graph_answers_as_the_run(runs, tmp_path, form, method):
    trained, x, expected = answers(runs[method])
    out = tmp_path / FILES[form]
    assert export(runs[method], form, out) == 0
    y, said = SAYS[form](out, x)
    assert (y - expected).abs().max() < 1e-4
    assert tuple(json.loads(said["classes"])) == trained.classes
    made = json.loads(said["preprocessing"])
    assert made["size"] == [64, 64] and made["mean"] == list(trained.preprocessing.mean)
    assert (made["crop_mode"] == "squash") == (method == "dtl")
    assert said["model"] == "test_vit"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_safetensors_and_peft_of_frozen_few_bits_hold_what_the_run_answers_with(runs, tmp_path):
    folder = runs["lora"]
    _, x, expected = answers(folder)
    merged = tmp_path / "m.safetensors"
    assert export(folder, "safetensors", merged) == 0
    with torch.no_grad():
        assert (open_merged(merged, device="cpu").tuned(x) - expected).abs().max() < 1e-4
    assert export(folder, "peft", tmp_path / "peft") == 0
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["modules_to_save"]
    # A merged file exports as a run does.
    assert export(merged, "torchscript", tmp_path / "m.pt") == 0
    assert (torchscript_says(tmp_path / "m.pt", x)[0] - expected).abs().max() < 1e-4


def test_what_cannot_be_written_is_said_in_one_line(runs, tmp_path, capsys, monkeypatch):
    folder = runs["dtl"]
    for form, output, said in (
        ("onx", "m.onnx", "did you mean onnx"),
        ("onnx", "m.pt", "must end in .onnx"),
        ("peft", "peft", "peft has no dtl"),
    ):
        capsys.readouterr()
        assert export(folder, form, tmp_path / output) == 2
        assert said in (err := capsys.readouterr().err) and err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert export(folder, "onnx", tmp_path / "m.onnx") == 2
    assert 'pip install "lowtide[export]"' in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.slow
def test_runs_of_one_backbone_are_one_graph(images, tmp_path):
    """Grafts of one kind and of others, a side network and a classifier, any batch."""
    runtime = pytest.importorskip("onnxruntime")
    methods = {"one": "lora", "two": "lora", "three": "ssf", "four": "dtl", "five": "linear"}
    runs = {n: run(images, tmp_path / n, m) for n, m in methods.items()}
    path = tmp_path / "tasks.onnx"
    given = [f"{name}={folder}" for name, folder in runs.items()]
    assert main(["export", *given, "--format", "onnx", "--output", str(path)]) == 0
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == list(runs)
    for name, folder in runs.items():
        trained, x, want = answers(folder)
        (have,) = session.run([name], {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(have), want, rtol=1e-4, atol=1e-4)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["tasks"]) == {name: list(trained.classes) for name in runs}
    assert json.loads(said["preprocessing"])["size"] == [64, 64]


def test_a_set_is_refused_where_it_does_not_fit(images, tmp_path, capsys):
    one, crop = run(images, tmp_path / "one"), run(images, tmp_path / "crop", augment="crop")
    for given, form, reason in (
        ([one, one], "onnx", "two runs are named one"),
        ([one, crop], "onnx", "prepares images otherwise"),
        ([one, crop], "torchscript", "torchscript holds one run; several fit onnx"),
    ):
        output = str(tmp_path / FILES[form])
        assert main(["export", *map(str, given), "--format", form, "--output", output]) == 2
        said = capsys.readouterr().err
        assert reason in said and not (tmp_path / FILES[form]).exists()

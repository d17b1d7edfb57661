"""A result is never written over what it is made of, nor over a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from lowtide import commands, fit
from lowtide.cli import main
from lowtide.errors import InputError
from lowtide.inference.places import refuse_replacing


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LoRA that began with weights of a file."""
    root = tmp_path_factory.mktemp("places")
    random = np.random.default_rng(0)
    for name in "ab":
        (root / "data" / name).mkdir(parents=True)
        for number in range(5):
            pixels = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "data" / name / f"{number}.png")
    model = timm.create_model("vit_micro_patch4_32", pretrained=True)
    save_file(model.state_dict(), root / "weights.safetensors")
    given = {"checkpoint": str(root / "weights.safetensors"), "epochs": 1, "workers": 0}
    fit("vit_micro_patch4_32", root / "data", "lora", output=root / "run", **given)
    save_file(model.state_dict(), root / "other.safetensors")
    shutil.copy(root / "data" / "a" / "0.png", root / "other.png")
    for name in ("a.csv", "page.html", "found/report.md", "found/search.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("mine")
    return root / "run"


IMAGE, OTHER = "RUN/../other.png", "RUN/../other.safetensors"
LOST = [
    (["merge", "RUN", "--output", "RUN/adapter_model.safetensors"], "belongs to the run"),
    (["merge", "RUN", "--output", "RUN/../weights.safetensors"], "is what the result is made of"),
    (
        ["export", "RUN", "--format", "safetensors", "--output", "RUN/../weights.safetensors"],
        "made",
    ),
    (["export", "RUN", "--format", "peft", "--output", "RUN"], "belongs to the run"),
    (["predict", "RUN", "RUN/../data", "--output", "RUN/log.jsonl"], "belongs to the run"),
    (["predict", "RUN", "RUN/../a.csv", "--output", "RUN/../a.csv"], "made of"),
    (["import", "RUN", "--model", "any", "--checkpoint", OTHER, "--output", OTHER], "made of"),
    (["push", "RUN", "me/mine", "--output", "RUN"], "belongs to the run"),
    (
        ["report", "RUN", "--figures", "RUN/../a.csv", "--output", "RUN/../a.csv"],
        "made",
    ),
    (
        ["report", "RUN", "--figures", "RUN/../page.html", "--output", "RUN/../page.html"],
        "made of",
    ),
    (["report", "RUN", "RUN/../found", "--output", "RUN/../found/report.md"], "made of"),
    (["inspect", "parameters", "RUN", "--output", "RUN/../data/a/0.png"], "made of"),
    (["inspect", "cka", "RUN", "--data", "RUN/../data", "--output", "RUN/../data/b/1.png"], "made"),
    (["inspect", "tsne", "RUN", "--output", "RUN/../data/b/1.png"], "made of"),
    (["inspect", "attention", "RUN", "--images", IMAGE, "--output", IMAGE], "made of"),
]
RUNS = {"train", "tune", "search", "bench"}
"""Commands whose output is a folder of runs; what is there stays if nobody says --overwrite."""


def test_every_command_with_an_output_is_held_to_it() -> None:
    sources = {
        p.stem.strip("_"): p.read_text() for p in Path(commands.__file__).parent.glob("*.py")
    }
    assert {name for name, text in sources.items() if '"--output"' in text} == {
        *(args[0] for args, _ in LOST),
        *RUNS,
    }


@pytest.mark.parametrize(("args", "said"), LOST, ids=lambda given: " ".join(given[:4])[-40:])
def test_no_result_replaces_what_would_be_lost(
    run: Path, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [path for path in run.parent.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in places}
    assert main([part.replace("RUN", str(run)) for part in args]) == 2
    assert said in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in places}


@pytest.mark.parametrize("command", sorted(RUNS))
def test_no_run_is_made_in_the_folder_of_another(
    run: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "vit_micro_patch4_32", "--data", str(run.parent / "data")]
    if command == "bench":
        suite = run.parent / "suite.yaml"
        suite.write_text(
            f"defaults: {{model: test_vit}}\ndata: {{d: {run.parent / 'data'}}}\n"
            "methods: {a: lora}\n"
        )
        given = [str(suite)]
    before = sorted(run.iterdir())
    assert main([command, *given, "--output", str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(run.iterdir()) == before


def test_a_report_is_written_anew_beside_what_it_reports(run: Path) -> None:
    for _ in range(2):
        assert main(["report", str(run), "--output", str(run / "report.md")]) == 0
    (run / "report.md").unlink()


def test_a_folder_of_peft_is_not_a_run(run: Path, tmp_path: Path) -> None:
    args = ["export", str(run), "--format", "peft", "--output", str(tmp_path / "peft")]
    assert main(args) == 0
    assert main(args) == 0  # written anew
    with pytest.raises(InputError, match="belongs to the run"):
        refuse_replacing(run, folder=True)


def test_a_link_to_what_is_read_is_found(run: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(run.parent / "weights.safetensors")
    with pytest.raises(InputError, match="made of"):
        refuse_replacing(link, run)
    copy = tmp_path / "copy.safetensors"
    shutil.copy(link, copy)
    refuse_replacing(copy, run)
    refuse_replacing(run / "answers.csv", run)

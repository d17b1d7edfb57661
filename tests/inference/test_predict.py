"""Answers for folders: every image, in a fixed order, in a file that nothing computes."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from tinted import write_tinted

from lowtide import METHODS
from lowtide.cli import main
from lowtide.data.tree import walk
from lowtide.training.config import RunConfig
from lowtide.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose classes have odd names, and a folder of images to ask it about."""
    root = tmp_path_factory.mktemp("predict")
    write_tinted(root, {"data": 4})
    for old, new in {"red": "=1+1", "green": "007", "blue": "очень длинное имя класса"}.items():
        (root / "data" / old).rename(root / "data" / new)
    config = RunConfig(
        "vit_micro_patch4_32",
        str(root / "data"),
        METHODS["linear"](),
        epochs=1,
        warmup_epochs=0.0,
        device="cpu",
    )
    train(config, root / "run")
    for i, path in enumerate(walk(root / "data", set())[0]):
        copy = root / "new" / f"{i % 3}" / f"{'-@+='[i % 4]}{i}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (root / "new/notes.txt").write_text("not an image")
    return root / "run"


def asked(capsys, run, *options):
    capsys.readouterr()
    code = main(["predict", str(run), *map(str, options), "--device", "cpu"])
    return (code, *capsys.readouterr())


def table_of(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_a_folder_gives_a_table_and_the_same_as_lines(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(run.parent / "new")
    table, lines = tmp_path / "deep/a.csv", tmp_path / "a.jsonl"
    code, out, err = asked(capsys, run, ".", "--output", table, "--top", "2", "--batch-size", "5")
    assert code == 0 and "12 of 12 images" in out and "what is no image: 1, first" in err
    assert asked(capsys, run, ".", "--output", lines, "--top", "2")[0] == 0
    rows = table_of(table)
    answers = [json.loads(line) for line in lines.read_text().splitlines()]
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2"]
    assert [a["path"] for a in answers] == sorted(a["path"] for a in answers)
    for row, answer in zip(rows, answers, strict=True):
        (best, share), (_, second) = answer["probabilities"].items()
        assert row["class"].removeprefix("'") == best == answer["class"]
        assert float(row["probability"]) == pytest.approx(share, abs=1e-5)
        assert float(row["probability_2"]) == pytest.approx(second, abs=1e-5)
    names = {row["class"] for row in rows} | {row["class_2"] for row in rows}
    assert names == {"'=1+1", "007", "очень длинное имя класса"}


def test_paths_are_no_formulas_either(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(run.parent / "new/0")
    names = sorted(p.name for p in (run.parent / "new/0").iterdir())
    asked(capsys, run, *(f"./{n}" for n in names), "--output", tmp_path / "a.csv")
    rows = table_of(tmp_path / "a.csv")
    assert [row["path"] for row in rows] == [f"'{n}" for n in names]


def test_an_unreadable_image_is_named_and_stops_nothing(run, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(run.parent / "new", folder)
    for name in ("0/a.png", "2/z.jpg"):
        (folder / name).write_bytes(b"broken")
    code, _, err = asked(capsys, run, folder, folder / "0/a.png", "--output", tmp_path / "a.csv")
    assert code == 2 and len((tmp_path / "a.csv").read_text().splitlines()) == 13
    named = [line for line in err.splitlines() if "a.png" in line or "z.jpg" in line]
    assert len(named) == 2


def test_what_cannot_be_answered_or_written_is_refused_first(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for options, said in (
        ((tmp_path / "empty",), "holds no image"),
        ((run.parent / "new", "--output", tmp_path / "a.xlsx"), "must end in .csv or .jsonl"),
        ((run.parent / "new", "--output", tmp_path), "must end in .csv or .jsonl"),
    ):
        code, out, err = asked(capsys, run, *options)
        assert code == 2 and said in err and not out

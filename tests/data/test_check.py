"""What `lowtide data check` says of a set, and that it raises nothing for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowtide.cli import main
from lowtide.data import check
from lowtide.errors import InputError


@pytest.fixture
def faulty(paint) -> Path:
    """Split folders with every fault there is."""
    root = paint(*(f"train/a/{n}.png" for n in range(6)), "train/b/0.png", "train/b/1.png")
    paint("val/a/7.png", "val/b/8.png", "test/b/9.png", size=(64, 30))
    shutil.copy(root / "train/a/0.png", root / "test/b/copied.png")
    with Image.open(root / "train/a/1.png") as image:
        image.save(root / "val/a/again.bmp")
        image.convert("L").save(root / "train/b/grey.png")
    shutil.copy(root / "train/a/2.png", root / "train/a/2 (1).png")
    (root / "train/b/broken.png").write_bytes((root / "train/b/0.png").read_bytes()[:99])
    return root


def test_everything_is_found(faulty):
    found = check(faulty)
    assert (found.format, found.root) == ("split folders", str(faulty))
    assert found.splits == {"train": 10, "val": 3, "test": 2}
    assert found.classes == {"a": 7, "b": 3} and found.imbalance == pytest.approx(7 / 3)
    assert (found.widths, found.heights) == ((20, 64), (16, 30))
    assert found.modes == {"RGB": 14, "L": 1}
    assert {(c.same, c.paths, c.splits, c.classes) for c in found.across} == {
        ("bytes", ("train/a/0.png", "test/b/copied.png"), ("train", "test"), ("a", "b")),
        ("pixels", ("train/a/1.png", "val/a/again.bmp"), ("train", "val"), ("a",)),
    }
    assert [(c.same, c.paths) for c in found.within] == [
        ("bytes", ("train/a/2 (1).png", "train/a/2.png"))
    ]
    assert [c.paths[1] for c in found.contradictory] == ["test/b/copied.png"]
    assert len(found.unreadable) == 1 and found.unreadable[0].startswith("train/b/broken.png: ")
    assert (found.task, found.differences, found.notes) == (None, (), ())


def test_it_prints_lines_or_json_and_succeeds(faulty, capsys):
    assert main(["data", "check", str(faulty)]) == 0
    said = capsys.readouterr().out
    for line in (
        "images: train 10, val 3, test 2",
        "classes: 2; largest a (7), smallest b (3), ratio 2.3",
        "size: 20-64 x 16-30 pixels; RGB 14, L 1",
        "copies within a split: 1 (train/a/2 (1).png = train/a/2.png)",
        "copies of several classes: 1 (train/a/0.png = test/b/copied.png)",
        "unreadable: 1 (train/b/broken.png: ",
    ):
        assert line in said
    assert main(["data", "check", str(faulty), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["splits"] == {"train": 10, "val": 3, "test": 2}
    assert len(found["across"]) == 2


def test_a_clean_set_has_nothing_to_say(cats_and_dogs):
    found = check(cats_and_dogs)
    assert sum(found.splits.values()) == 30
    assert not (found.across or found.within or found.contradictory or found.unreadable)
    assert found.lines()[-1] == "unreadable: none"
    assert "note: test: 6 images split off, 20% of each class, seed 0" in found.lines()


def test_a_published_task_is_compared(paint):
    root = paint("DTD/images/train800/0.jpg", "DTD/images/train800/1.jpg") / "DTD"
    (root / "train800.txt").write_text("images/train800/0.jpg 0\nimages/train800/1.jpg 1\n")
    found = check(root)
    assert found.task == "dtd"
    assert found.differences[0] == "dtd should have 47 classes, found 2"
    assert "differs: dtd should have 47 classes, found 2" in found.lines()
    assert not any("should have" in note for note in found.notes)


def test_a_set_without_train_is_looked_at_too(paint):
    root = paint("a.png", "b.png", "c.png")
    (root / "test.txt").write_text("a.png 3\nb.png 7\nc.png 7\n")
    found = check(root)
    assert found.splits == {"train": 0, "val": 0, "test": 3} and found.classes == {"3": 1, "7": 2}
    for name in "abc":
        (root / f"{name}.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of its 3 images can be read"):
        check(root)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["chek", "{}"], "chek"),
        (["check", "{}/absent"], "does not exist"),
        (["check", "{}"], "is empty: expected one sub-folder"),
        (["check"], "source"),
    ],
)
def test_what_cannot_be_read_is_the_usual_error(args, said, tmp_path, capsys):
    assert main(["data", *(arg.format(tmp_path) for arg in args)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lowtide: ") and error.count("\n") == 1 and said in error


def test_dark_images_of_twelve_bits_are_no_copies(tmp_path):
    for n, (name, label) in enumerate((c, k) for c in "ab" for k in "12"):
        (tmp_path / name).mkdir(exist_ok=True)
        grey = np.full((4, 4), 16 * n, dtype=np.uint16)
        grey[0, 0] = 4095
        Image.fromarray(grey).save(tmp_path / name / f"{label}.png")
    found = check(tmp_path)
    assert not (found.across or found.within or found.contradictory)
    assert found.modes == {"I;16": 4}

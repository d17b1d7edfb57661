"""The community's lists, in the layouts they are published in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lowtide.data import Dataset, read
from lowtide.data.formats.few_shot import read_meta
from lowtide.data.formats.lists import read_lists
from lowtide.errors import InputError


def labels(data: Dataset, which: str) -> dict[str, str]:
    """Relative path to class name."""
    return {
        path.relative_to(data.root).as_posix(): data.classes[label]
        for path, label in getattr(data, which)
    }


def refusal(source: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines(path: Path, rows: dict[str, int | str], times: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name} {label}\n" * times for name, label in rows.items()))


# VTAB-1k


def test_a_known_vtab_task_is_compared_with_what_was_published(paint):
    files = {w: [f"kitti/images/{w}/{n:06}.jpg" for n in range(4)] for w in ("train800", "val200")}
    root = paint(*files["train800"], *files["val200"]) / "kitti"
    for name, paths in files.items():
        lines(root / f"{name}.txt", {p.removeprefix("kitti/"): n for n, p in enumerate(paths)})
    assert read(root).notes == (
        "kitti should have 800 images in train, found 4",
        "kitti should have 200 images in val, found 4",
        "kitti should have 711 images in test, found 0",
        "test: none",
    )


def test_a_whole_vtab_task_has_no_notes(tmp_path):
    root = tmp_path / "KITTI"
    for name, count in (("train800", 800), ("val200", 200), ("test", 711)):
        lines(root / f"{name}.txt", {f"images/{name}/{n:06}.jpg": n % 4 for n in range(count)})
    assert read_lists(root).differences() == ()
    lines(root / "train800.txt", {f"images/train800/{n:06}.jpg": n % 3 for n in range(800)})
    assert read_lists(root).differences() == ("kitti should have 4 classes, found 3",)


# FGVC


def fgvc(paint, name: str, images: str, ids: tuple[int | str, ...] = (1, 2, 200)) -> Path:
    for n, which in enumerate(("train", "val", "test")):
        files = [f"{label}.Bird/{n}.jpg" for label in ids]
        root = paint(*(f"{name}/{images}/{file}" for file in files)) / name
        (root / f"{which}.json").write_text(json.dumps(dict(zip(files, ids, strict=True))))
    return root


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("CUB_200_2011", "images"),
        ("nabirds", "images"),
        ("StanfordDogs", "Images"),
        ("StanfordDogs", "."),
        ("OxfordFlowers", "."),
        ("StanfordCars", "."),
    ],
)
def test_fgvc_roots_and_the_class_map_of_train(paint, name, images):
    root = fgvc(paint, name, images)
    (root / "classes.txt").write_text("1 001.Bird\n2 002.Bird\n")  # CUB's own, another format
    data = read(root)
    assert data.format == "JSON lists (train.json, val.json, test.json)"
    assert data.classes == ("1", "2", "200")
    assert [label for _, label in data.train] == [0, 1, 2]
    where = "" if images == "." else f"{images}/"
    assert labels(data, "val") == {f"{where}{c}.Bird/1.jpg": c for c in ("1", "2", "200")}
    assert labels(data, "test") == {f"{where}{c}.Bird/2.jpg": c for c in ("1", "2", "200")}
    assert sum(note.startswith(f"{name} should have") for note in data.notes) == 4
    assert read(root / "train.json") == data


def test_fgvc_trainval_is_the_final_protocol(paint):
    root = fgvc(paint, "birds", "images")
    whole = json.loads((root / "train.json").read_text())
    whole |= json.loads((root / "val.json").read_text())
    (root / "trainval.json").write_text(json.dumps(whole))
    data = read(root / "trainval.json")
    assert (len(data.train), data.val, len(data.test)) == (6, (), 3)
    assert (len(read(root).train), len(read(root).val)) == (3, 3)


def test_a_split_that_lacks_a_class_keeps_the_class_map_of_train(paint):
    root = fgvc(paint, "birds", "images")
    (root / "val.json").write_text(json.dumps({"200.Bird/1.jpg": 200}))
    assert [label for _, label in read(root).val] == [2]


def test_an_unseen_class_is_refused(paint):
    root = fgvc(paint, "birds", "images")
    (root / "test.json").write_text(json.dumps({"1.Bird/2.jpg": 1, "2.Bird/2.jpg": 3}))
    assert refusal(root) == "test.json entry 2: class '3' of test is not in train"


def test_class_ids_may_be_names(paint):
    data = read(fgvc(paint, "dogs", "Images", ("n02085620-Chihuahua", "n02085782-Japanese")))
    assert data.classes == ("n02085620-Chihuahua", "n02085782-Japanese")


def test_json_beside_a_train_folder_is_something_else(paint):
    root = paint("train/a/1.png", "train/b/1.png", "test/a/2.png")
    (root / "train.json").write_text('{"images": []}')
    assert read(root, val_fraction=0).format == "split folders"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "train.json is not JSON: "),
        ("[" * 100_000, "train.json is not JSON: "),
        ('[["a.png", 1]]', "train.json: expected one object {path: class id}"),
        ("3", "train.json: expected one object"),
        ("{}", "train.json is empty"),
        ('{"a.png": true}', "train.json: expected a path and a class id, got 'a.png': True"),
        ('{"a.png": 1.5}', "got 'a.png': 1.5"),
        ('{"a.png": null}', "got 'a.png': None"),
        ('{"images": {"a.png": 1}}', "got 'images': "),
        ('{" ": 1}', "got ' ': 1"),
        ('{"a.png": -1, "b.png": 1}', "train.json entry 1: label '-1' is neither an integer"),
        ('{"a.png": 0, "b.png": "x"}', "entry 2: label 'x', but the labels before it are int"),
        ('{"a.png": 0, "b.png": 1, "a.png": 1}', "1 images are listed more than once, first "),
        ('{"a.png": 0, "c.png": 1}', "1 of 2 files do not exist, first "),
    ],
)
def test_json_that_is_no_list(paint, text, expected):
    root = paint("a.png", "b.png")
    (root / "train.json").write_text(text)
    assert expected in refusal(root)


# Few-shot lists


def few_shot(paint, name: str, images: str, where: str = "") -> Path:
    """Two shots of two classes; two val and two test images."""
    files = {f"{c}/my image {n}.jpg": c for c in (0, 1) for n in range(4)}
    paint(*(f"{images}/{file}" for file in files))
    chosen = list(files.items())
    root = paint() / (where or name)
    lines(root / "annotations/train_meta.list.num_shot_2.seed_0", dict(chosen[:2] + chosen[4:6]))
    lines(root / "annotations/train_meta.list.num_shot_1.seed_2", dict(chosen[:1] + chosen[5:6]))
    lines(root / "annotations/val_meta.list", dict(chosen[2:3] + chosen[6:7]))
    lines(root / "annotations/test_meta.list", dict(chosen[3:4] + chosen[7:]))
    return root


@pytest.mark.parametrize(
    ("name", "images", "where"),
    [
        ("food101", "food101/images", ""),
        ("standford-cars", "standford-cars", ""),
        ("oxford-pets", "FGFS/oxford-pets", "FGFS/few-shot_split/oxford-pets"),
        ("oxford-pets", "FGFS/oxford-pets/images", "FGFS/few-shot_split/oxford-pets"),
    ],
)
def test_few_shot_lists(paint, name, images, where):
    root = few_shot(paint, name, images, where)
    data = read(root / "annotations/train_meta.list.num_shot_1.seed_2")
    assert data.classes == ("0", "1")
    there = root.parent.parent.parent if where else root.parent
    assert {path: label for path, label in data.train} == {
        there / images / "0/my image 0.jpg": 0,
        there / images / "1/my image 1.jpg": 1,
    }
    assert [path.name for path, _ in data.val] == ["my image 2.jpg"] * 2
    assert [path.name for path, _ in data.test] == ["my image 3.jpg"] * 2
    assert any(note.startswith(f"{name} should have") for note in data.notes)
    assert read(root / "annotations/train_meta.list.num_shot_2.seed_0").test == data.test


def test_a_few_shot_folder_asks_which_list(paint):
    root = few_shot(paint, "food101", "food101/images")
    assert refusal(root) == (
        f"{root} has 2 lists for train, one for each number of shots and seed: name the one to "
        f"use, such as {root}/annotations/train_meta.list.num_shot_1.seed_2"
    )
    (root / "annotations/train_meta.list.num_shot_2.seed_0").unlink()
    assert len(read(root).train) == len(read(root / "annotations").train) == 2


def test_the_doubled_lines_of_the_pets_count_once(paint):
    root = few_shot(paint, "oxford-pets", "oxford-pets/images")
    path = root / "annotations/train_meta.list.num_shot_1.seed_2"
    once = read(path)
    path.write_text(re.sub("(.*\n)", r"\1\1", path.read_text()))
    data = read(path)
    assert data.train == once.train and data.fingerprint == once.fingerprint
    assert data.notes[0] == f"{path.name}: 2 repeated lines dropped"
    path.write_text(path.read_text().replace("1.jpg 1\n", "1.jpg 0\n", 1) + "0/my image 1.jpg 0\n")
    assert "1 images are listed more than once" in refusal(path)


def test_a_whole_few_shot_list_has_no_notes(tmp_path):
    notes = "oxford-pets/annotations"
    train = {f"{n}.jpg": n % 37 for n in range(37 * 4)}
    lines(tmp_path / notes / "train_meta.list.num_shot_4.seed_1", train)
    lines(tmp_path / notes / "test_meta.list", {f"t{n}.jpg": n % 37 for n in range(3669)})
    listing = read_meta(tmp_path / notes / "train_meta.list.num_shot_4.seed_1")
    assert listing.notes == listing.differences() == ()


# DomainNet


def domains(paint, folder: str) -> Path:
    for domain in ("real", "sketch"):
        for which in ("train", "test"):
            files = {f"{domain}/{c}/{domain}_{which}_{n}.jpg": n for n, c in enumerate("ab")}
            root = paint(*files)
            lines(root / folder / f"{domain}_{which}.txt", files)
    return root / folder


@pytest.mark.parametrize("folder", [".", "splits"])
def test_domainnet_lists(paint, folder):
    root = domains(paint, folder)
    data = read(root / "real_train.txt", val_fraction=0)
    assert data.format == "lists (real_train.txt, real_test.txt)"
    assert [path.name for path, _ in data.train] == ["real_train_0.jpg", "real_train_1.jpg"]
    assert [path.name for path, _ in data.test] == ["real_test_0.jpg", "real_test_1.jpg"]
    assert "real_train.txt and sketch_train.txt are all lists for train; name the" in refusal(root)
    other = read(root / "sketch_test.txt", classes=data.classes)
    assert (other.train, len(other.test)) == ((), 2)
    for path in root.glob("sketch_*.txt"):
        path.unlink()
    assert read(root, val_fraction=0) == data

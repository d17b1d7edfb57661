"""Bad dense labels: refused in one line, or dropped and counted; `data check` finds every one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees

from lowtide.cli import main
from lowtide.data.dense import check, read, recognised
from lowtide.data.dense.faults import FAULTS
from lowtide.errors import InputError

pytest.importorskip("pycocotools.mask")

Spoil = Callable[[Path], object]


def coco(change: Callable[[dict], object]) -> Spoil:
    """Change the content of train's JSON."""

    def spoil(root: Path) -> None:
        path = trees.coco(root) / "annotations/instances_train2017.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def first(**changes: object) -> Spoil:
    return coco(lambda content: content["annotations"][0].update(changes))


def yolo(line: str, name: str = "labels/train/a.txt") -> Spoil:
    return lambda root: trees.text(trees.yolo(root) / name, line)


def voc(old: str, new: str) -> Spoil:
    def spoil(root: Path) -> None:
        path = trees.voc(root) / "Annotations/b.xml"
        path.write_text(path.read_text().replace(old, new, 1))

    return spoil


def pairs(change: Callable[[Path], object]) -> Spoil:
    return lambda root: change(trees.mask_pairs(root))


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
LAUGHS = '<!DOCTYPE l [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'

REFUSED: dict[str, tuple[Spoil, str]] = {
    "NaN in a box": (first(bbox=[1, float("nan"), 3, 4]), "not finite: 1, first .*annotation 1"),
    "infinity in a polygon": (
        first(segmentation=[[1, 2, 3, float("inf"), 5, 6]]),
        "not finite: 1, first .*annotation 1: segmentation",
    ),
    "five numbers": (first(bbox=[1, 2, 3, 4, 5]), "annotation 1: expected bbox as four numbers"),
    "text in a box": (first(bbox=["1", 2, 3, 4]), "expected bbox as four numbers"),
    "a huge number": (first(bbox=[1, 2, 3, 10**400]), "not finite"),
    "an unknown image": (first(image_id=99), "annotation 1: its image 99 is not among the images"),
    "an unknown category": (first(category_id=4), "annotation 1: its category 4 is not among"),
    "a list as id": (first(image_id=[1]), "annotation 1: expected a whole number as id"),
    "a polygon far away": (
        first(segmentation=[[0, 0, 10**9, 0, 10**9, 10**9]]),
        "a polygon far outside",
    ),
    "a crowd in words": (first(iscrowd="0"), "annotation 1: expected iscrowd 0 or 1, got '0'"),
    "two crowds": (first(iscrowd=2), "annotation 1: expected iscrowd 0 or 1, got 2"),
    "half a corner": (first(segmentation=[[1, 2, 3, 4, 5]]), "expected segmentation as polygons"),
    "runs of another size": (
        first(segmentation={"size": [20, 20], "counts": [0, 400]}),
        "another size than their image: 1, first .*run lengths of 20 x 20",
    ),
    "runs too long": (
        first(segmentation={"size": [30, 40], "counts": [5, 5000]}),
        "do not add up to 30 x 40",
    ),
    "runs of a negative": (
        first(segmentation={"size": [30, 40], "counts": [-5, 1205]}),
        "no counts of pixels",
    ),
    "runs of nonsense": (first(segmentation={"size": [30, 40], "counts": "~~~~"}), "not COCO's"),
    "runs of a huge mask": (
        first(segmentation={"size": [10**6, 10**6], "counts": [10**12]}),
        "more than 120 million pixels",
    ),
    "another size declared": (
        coco(lambda content: content["images"][0].update(width=41)),
        "another size than declared: 1, first .*is 40 x 30, .*says 41 x 30",
    ),
    "a missing image": (
        coco(lambda content: content["images"][0].update(file_name="lost.png")),
        "missing images: 1, first .*lost.png",
    ),
    "a path that leads out": (
        coco(lambda content: content["images"][0].update(file_name="../../etc/passwd")),
        "leads out of",
    ),
    "an absolute path": (
        coco(lambda content: content["images"][0].update(file_name="/etc/passwd")),
        "leads out of",
    ),
    "a path on C:": (
        coco(lambda content: content["images"][0].update(file_name="C:\\a.png")),
        "leads out of",
    ),
    "a name that is a number": (
        coco(lambda content: content["images"][0].update(file_name=7)),
        "expected the path of an image, got 7",
    ),
    "one id twice": (
        coco(lambda content: content["images"][0].update(id=20)),
        "two images have one id",
    ),
    "one category twice": (
        coco(lambda content: content["categories"].append({"id": 3, "name": "cow"})),
        "category 3 .* is there twice",
    ),
    "an image listed twice": (
        coco(lambda content: content["images"].append({**content["images"][0], "id": 5})),
        "a.png is listed more than once",
    ),
    "no annotations": (coco(lambda content: content.pop("annotations")), "is not COCO: expected"),
    "no objects in lists": (coco(lambda content: content["images"].append(7)), "is not COCO"),
    "no COCO": (
        lambda root: trees.text(trees.coco(root) / "annotations/instances_val2017.json", {"a": 1}),
        "instances_val2017.json is not COCO: expected an object with lists of images",
    ),
    "100,000 brackets": (
        lambda root: trees.text(
            trees.coco(root) / "annotations/instances_val2017.json", "[" * 100_000
        ),
        "no JSON of labels: it is nested too deep",
    ),
    "half a JSON": (
        lambda root: trees.text(trees.coco(root) / "annotations/instances_val2017.json", '{"a'),
        "is no JSON",
    ),
    "no UTF-8": (
        lambda root: (trees.coco(root) / "annotations/instances_val2017.json").write_bytes(b"\xff"),
        "not UTF-8",
    ),
    "an unreadable image": (
        lambda root: broken(trees.coco(root) / "val2017/b.png"),
        "unreadable images: 1, first .*b.png.*--skip-bad-images",
    ),
    "a class beyond the names": (yolo("2 0.5 0.5 0.1 0.1"), "labels/train/a.txt:1: class 2, and"),
    "a class that is a fraction": (yolo("0.5 0.5 0.5 0.1 0.1"), "class 0.5, and there are 2"),
    "a short line": (yolo("0 0.5 0.5 0.1"), "a.txt:1: expected a class with 4 numbers"),
    "pixels for shares": (yolo("0 12 15 10 4"), "no shares of the image"),
    "NaN in a line": (yolo("0 nan 0.5 0.1 0.1"), "not finite: 1, first labels/train/a.txt:1"),
    "words in a line": (yolo("cat 0.5 0.5 0.1 0.1"), "expected numbers, got"),
    "an alias bomb": (yolo(BOMB + "names: *i\ntrain: x\n", "data.yaml"), "more than 100000"),
    "a YAML with a tag": (
        yolo("names: !!python/name:os.system\ntrain: x\n", "data.yaml"),
        "no YAML",
    ),
    "names with a gap": (yolo("names: {0: a, 2: b}\ntrain: x\n", "data.yaml"), "numbers 0 to 1"),
    "names that YAML takes for truths": (
        yolo("names: [no, yes]\ntrain: x\n", "data.yaml"),
        "names: False is no name: put yes, no, on and off in quotes",
    ),
    "more classes than names": (
        yolo("nc: 3\nnames: [a, b]\ntrain: images/train\n", "data.yaml"),
        "nc is 3, and there are 2 names",
    ),
    "a folder that is absent": (
        yolo("names: [a, b]\ntrain: images/trian\n", "data.yaml"),
        "'images/trian' is not there; did you mean",
    ),
    "a folder outside": (yolo("names: [a]\ntrain: /etc\n", "data.yaml"), "'/etc' leads out of"),
    "a folder far outside": (
        yolo("names: [a]\npath: ../../..\ntrain: ../../etc\n", "data.yaml"),
        "'../../etc' (leads out|is not there)",
    ),
    "entities": (
        lambda root: trees.text(trees.voc(root) / "Annotations/b.xml", LAUGHS),
        "document",
    ),
    "deep XML": (
        lambda root: trees.text(trees.voc(root) / "Annotations/b.xml", "<annotation>" * 99),
        "nested more than 20",
    ),
    "half an XML": (voc("</annotation>", ""), "b.xml is no XML"),
    "a box without a corner": (voc("<xmin>11</xmin>", ""), "b.xml object 1: expected <bndbox>"),
    "two boxes of an object": (
        voc("</bndbox>", "</bndbox><bndbox/>"),
        "b.xml object 1: expected one <bndbox>, got 2",
    ),
    "NaN in XML": (voc("<xmin>11<", "<xmin>nan<"), "not finite: 1, first b.xml object 1"),
    "a missing XML": (
        lambda root: (trees.voc(root) / "Annotations/c.xml").unlink(),
        "missing label files: 1, first .*c.xml",
    ),
    "a missing mask": (
        pairs(lambda root: (root / "masks/train/a.png").unlink()),
        "missing masks: 1, first .*images/train/a.png",
    ),
    "a missing image of a mask": (
        pairs(lambda root: (root / "images/train/a.png").unlink()),
        "missing images: 1, first .*masks/train/a.png",
    ),
    "a mask of another size": (
        pairs(lambda root: trees.mask(root / "masks/val/b.png", np.zeros((30, 41)))),
        "another size than their image: 1, first .*b.png is 41 x 30, b.png 40 x 30",
    ),
    "a mask with a fourth class": (
        pairs(lambda root: trees.mask(root / "masks/val/b.png", np.full((30, 40), 3))),
        "beyond the names: 1, first .*b.png has value 3, and there are 3 classes",
    ),
    "a mask in colours": (
        pairs(lambda root: shutil.copy(root / "images/val/b.png", root / "masks/val/b.png")),
        "unreadable masks: 1, first .*b.png: it has colours",
    ),
    "a mask in JPEG": (
        pairs(lambda root: (root / "masks/val/b.png").rename(root / "masks/val/b.jpg")),
        "unreadable masks: 1, first .*b.jpg: JPEG changes the values",
    ),
    "labels without names": (
        lambda root: (trees.yolo(root) / "data.yaml").unlink(),
        "expected data.yaml or classes.txt beside images and labels",
    ),
    "a broken mask": (pairs(lambda root: broken(root / "masks/val/b.png")), "unreadable masks: 1"),
    "a name twice": (
        pairs(lambda root: trees.text(root / "classes.txt", "cat\ncat\ndog\n")),
        "classes.txt: expected a new class name, got 'cat'",
    ),
    "two masks of one image": (
        pairs(lambda root: trees.mask(root / "masks/val/b.bmp", np.zeros((30, 40)))),
        "val/b.bmp and .*val/b.png have one name: expected one image of each",
    ),
    "two images of one mask": (
        pairs(lambda root: trees.image(root / "images/val/b.bmp", "b")),
        "val/b.bmp and .*val/b.png have one name: expected one image of each",
    ),
    "a painted shape": (
        lambda root: trees.text(
            trees.labelme(root) / "val/b.json",
            {"shapes": [{"label": "cat", "shape_type": "mask", "points": [[1, 2], [3, 4]]}]},
        ),
        "shape 1: expected a shape_type of polygon, rectangle, circle, got 'mask'",
    ),
    "no shapes": (
        lambda root: trees.text(trees.labelme(root) / "val/b.json", {"shapes": 4}),
        "b.json is not LabelMe's",
    ),
    "a polygon of two corners": (
        lambda root: trees.text(
            trees.labelme(root) / "val/b.json",
            {"shapes": [{"label": "cat", "points": [[1, 2], [3, 4]]}], "imagePath": "b.png"},
        ),
        "b.json shape 1: expected a polygon with 3 points",
    ),
    "an empty folder": (lambda root: root, "holds no dense labels: expected one of .*COCO JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_labels_are_refused_in_one_line(name, tmp_path):
    spoil, said = REFUSED[name]
    spoil(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_boxes_that_cannot_be_learnt_are_dropped_or_cut_and_counted(tmp_path):
    def change(content: dict) -> None:
        box = content["annotations"][0]
        given = ([5, 5, 0, 4], [9, 9, -3, 4], [6, 9, 1e-9, 4])
        for bbox in (*given, [50, 3, 5, 5], [35, 25, 10, 10], [-3, -4, 9, 9]):
            content["annotations"].append({**box, "bbox": bbox, "id": bbox[0]})

    coco(change)(tmp_path)
    folder = read(tmp_path)
    boxes = [o.box for o in folder.splits["train"].images[0].objects]
    assert boxes == [(4, 5, 14, 25), (20, 2, 38, 12), (35, 25, 40, 30), (0, 0, 6, 5)]
    for said in (
        "boxes outside their image: 1 dropped (first instances_train2017.json annotation 50",
        "empty boxes: 3 dropped (first instances_train2017.json annotation 5",
        "boxes across the edge of their image: 2 clipped (first instances_train2017.json annotati",
    ):
        assert any(note.startswith(said) for note in folder.notes)
    assert folder.splits["train"][0][1]["boxes"].tolist() == [list(box) for box in boxes]


def test_bad_images_are_left_out_where_that_is_asked_for(tmp_path):
    broken(trees.coco(tmp_path) / "train2017/c.png")
    folder = read(tmp_path, skip_bad_images=True)
    assert len(folder.splits["train"]) == 1 and len(folder.skipped) == 1
    assert "c.png" in folder.skipped[0] and folder.describe()["skipped"] == list(folder.skipped)


def test_names_in_any_alphabet_and_bytes_are_read(tmp_path):
    for stem, name in (("a", "猫 α"), ("b", os.fsdecode(b"\xff\xfe"))):
        trees.image(tmp_path / "images" / f"{name}.png", stem)
        trees.mask(tmp_path / "masks" / f"{name}.png", trees.semantic(stem))
    folder = read(tmp_path, val_fraction=0, test_fraction=0)
    assert len(folder.splits["train"]) == 2 and len(folder.fingerprint) == 64
    assert check(tmp_path).splits == {"train": 1, "test": 1}


def test_what_is_probably_not_meant_is_said(tmp_path):
    yolo("0 .5 .5 .1 .1", "labels/train/lost.txt")(tmp_path / "yolo")
    trees.text(tmp_path / "yolo/labels/train/classes.txt", "cat\ndog\n")
    (note,) = (n for n in read(tmp_path / "yolo").notes if "label files" in n)
    assert note.startswith("1 label files have no image (first") and note.endswith("lost.txt)")
    voc("<name>cat<", "<name>Cat<")(tmp_path / "voc")
    said = "classes 'Cat' and 'cat' differ in case"
    assert any(n.startswith(said) for n in read(tmp_path / "voc").notes)
    assert any(n.startswith(said) for n in check(tmp_path / "voc").notes)
    trees.mask_pairs(tmp_path / "masks")
    for path in (tmp_path / "masks/masks").rglob("*.png"):
        trees.mask(path, np.where(np.arange(1200).reshape(30, 40) % 3, 0, 255))
    notes = read(tmp_path / "masks").notes
    assert "masks hold 0 and 255 only, of 3 classes, and 255 is ignored" in notes


def test_labels_of_another_kind_are_refused_and_richer_ones_are_made_poorer(tmp_path):
    trees.yolo(tmp_path / "yolo")
    trees.coco(tmp_path / "coco")
    trees.mask_pairs(tmp_path / "masks")
    with pytest.raises(InputError, match=r"no labels for semantic, only for boxes \(YOLO\)"):
        read(tmp_path / "yolo", kind="semantic")
    with pytest.raises(InputError, match="no labels for boxes, only for semantic"):
        read(tmp_path / "masks", kind="boxes")
    with pytest.raises(InputError, match="did you mean boxes"):
        read(tmp_path / "masks", kind="box")
    assert "masks" not in read(tmp_path / "coco", kind="boxes").splits["train"][0][1]
    with pytest.raises(InputError, match="did you mean .*yolo"):
        (tmp_path / "coco").rename(tmp_path / "z")
        (tmp_path / "masks").rename(tmp_path / "zz")
        read(tmp_path)


def test_objects_of_which_some_have_no_mask_are_boxes(tmp_path):
    first(segmentation=[])(tmp_path)
    folder = read(tmp_path)
    assert folder.kind == "boxes" and "1 of 3 objects have no mask" in folder.notes[0]
    with pytest.raises(InputError, match="1 of 3 objects have no mask .*annotation 1"):
        read(tmp_path, kind="instances")


SEEN: dict[str, tuple[Spoil, str]] = {
    "missing images": REFUSED["a missing image"],
    "missing masks": REFUSED["a missing mask"],
    "missing label files": REFUSED["a missing XML"],
    "unreadable images": REFUSED["an unreadable image"],
    "unreadable masks": REFUSED["a broken mask"],
    "images of another size than declared": REFUSED["another size declared"],
    "masks of another size than their image": REFUSED["a mask of another size"],
    "classes beyond the names": REFUSED["a mask with a fourth class"],
    "objects that are not understood": REFUSED["an unknown image"],
    "boxes that are not finite": REFUSED["NaN in a box"],
    "boxes outside their image": (first(bbox=[41, 3, 5, 5]), ""),
    "empty boxes": (first(bbox=[4, 3, 0, 5]), ""),
    "empty outlines": (first(segmentation={"size": [30, 40], "counts": [1200]}), ""),
    "boxes across the edge of their image": (first(bbox=[38, 3, 5, 5]), ""),
    "duplicate objects": (coco(lambda c: c["annotations"].append(c["annotations"][0])), ""),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_check_finds_every_fault_and_succeeds(kind, tmp_path, capsys):
    spoil, _ = SEEN[kind]
    spoil(tmp_path)
    found = check(tmp_path)
    assert {kind: len(places) for kind, places in found.faults.items()} == {kind: 1}
    assert main(["data", "check", str(tmp_path)]) == 0
    assert f"{kind}: 1 (" in " ".join(capsys.readouterr().out.split())


def test_check_prints_what_a_person_should_know(tmp_path, capsys):
    trees.yolo(tmp_path)
    trees.text(
        tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog, cow]\n"
    )
    shutil.copy(tmp_path / "images/train/a.png", tmp_path / "images/val/again.png")
    assert main(["data", "check", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for line in (
        "images: train 2, val 2",
        "objects: train 2, val 1; small 3, medium 0, large 0",
        "size: 40 x 30 pixels",
        "  cat: objects train 1, val 1",
        "images without objects: train 1, val 1",
        "classes without objects: 1 (cow)",
        "copies within a split: none",
        "copies across splits: 1 (images/train/a.png = images/val/again.png)",
        "faults: none",
    ):
        assert line in " ".join(said.split(" "))
    assert main(["data", "check", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["kind"], found["absent"]) == ("YOLO", "boxes", ["cow"])
    assert found["across"][0]["splits"] == ["train", "val"]


def test_check_of_what_cannot_be_read_at_all_is_an_error(tmp_path, capsys):
    REFUSED["100,000 brackets"][0](tmp_path)
    assert main(["data", "check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_images_with_classes_are_not_taken_for_dense_labels(paint):
    root = paint("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "images/4.png")
    trees.text(root / "train.json", {"train/cat/1.png": 0, "train/dog/2.png": 1})
    trees.text(root / "annotations/train_meta.list", "4.png 0")
    assert not any(map(recognised, [root, root / "train", root / "train.json", "hf:a/b"]))

"""Every format of dense labels, written from the same truth, gives the same boxes and masks."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image
from torchvision import tv_tensors

from lowtide.data.dense import check, formats, read, recognised, transforms
from lowtide.data.dense.runs import read_runs

coco_masks = pytest.importorskip("pycocotools.mask")

OBJECTS = {
    "coco": (trees.coco, "instances"),
    "coco in runs": (lambda root: trees.coco(root, "runs"), "instances"),
    "coco without masks": (lambda root: trees.coco(root, "none"), "boxes"),
    "roboflow": (trees.roboflow, "boxes"),
    "yolo": (trees.yolo, "boxes"),
    "yolo polygons": (lambda root: trees.yolo(root, polygons=True), "instances"),
    "voc": (trees.voc, "boxes"),
    "voc masks": (trees.voc_masks, "instances"),
    "labelme": (trees.labelme, "instances"),
}
SEMANTIC = {
    "mask_pairs": (trees.mask_pairs, ("background", "cat", "dog"), (0, 1, 2)),
    "mask_pairs beside": (trees.beside, ("background", "cat", "dog"), (0, 1, 2)),
    "roboflow_masks": (trees.roboflow_masks, ("background", "cat", "dog"), (0, 1, 2)),
    "voc masks": (trees.voc_masks, ("background", "cat", "dog"), (0, 1, 2)),
    "coco": (trees.coco, ("background", "cat", "dog"), (0, 1, 2)),
    "ade20k": (trees.ade20k, ("cat", "dog"), (255, 0, 1)),
    "cityscapes": (trees.cityscapes, None, (255, 13, 2)),
    "cityscapes trained": (
        lambda root: trees.cityscapes(root, "labelTrainIds"),
        None,
        (255, 13, 2),
    ),
}


def stems(split) -> list[str]:
    return [image.path.stem.partition("_")[0] for image in split.images]


def test_every_format_has_a_tree_here():
    files = {Path(file.__file__).stem for file in formats._FILES}
    assert files == {name.split()[0] for name in {**OBJECTS, **SEMANTIC}} - {"roboflow"}


@pytest.mark.parametrize("name", OBJECTS)
def test_boxes_and_masks_are_those_that_were_written(name, tmp_path):
    write, kind = OBJECTS[name]
    folder = read(write(tmp_path))
    assert (folder.classes, folder.kind, list(folder.splits)) == (
        trees.CLASSES,
        kind,
        ["train", "val"],
    )
    for which, split in folder.splits.items():
        assert sorted(stems(split)) == sorted(trees.SPLITS[which])
        for stem, (image, target) in zip(stems(split), split, strict=True):
            truth = trees.TRUTH[stem]
            assert image.dtype == torch.uint8 and image.shape == (3, trees.HEIGHT, trees.WIDTH)
            assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
            assert target["boxes"].dtype == torch.float32
            labels = [folder.classes[label] for label in target["labels"]]
            found = dict(zip(labels, target["boxes"].tolist(), strict=True))
            assert found.keys() == dict(truth).keys() and len(found) == len(labels)
            for label, box in truth:
                assert found[label] == pytest.approx(box)
            assert target["labels"].dtype == target["iscrowd"].dtype == torch.int64
            if kind == "instances":
                assert target["masks"].dtype == torch.uint8
                for mask, (x1, y1, x2, y2) in zip(
                    target["masks"], target["boxes"].int().tolist(), strict=True
                ):
                    assert mask.sum() == (x2 - x1) * (y2 - y1) == mask[y1:y2, x1:x2].sum()


@pytest.mark.parametrize("name", SEMANTIC)
def test_semantic_masks_are_those_that_were_written(name, tmp_path):
    write, classes, values = SEMANTIC[name]
    folder = read(write(tmp_path), kind="semantic")
    assert classes is None or folder.classes == classes
    for which, split in folder.splits.items():
        assert sorted(stems(split)) == sorted(trees.SPLITS[which])
        for stem, (_, target) in zip(stems(split), split, strict=True):
            expected = np.array(values)[trees.semantic(stem)]
            assert target["mask"].dtype == torch.int64 and isinstance(
                target["mask"], tv_tensors.Mask
            )
            assert (target["mask"].numpy() == expected).all()


@pytest.mark.parametrize("name", OBJECTS)
def test_check_counts_what_was_written(name, tmp_path):
    write, kind = OBJECTS[name]
    assert recognised(write(tmp_path))
    found = check(tmp_path)
    assert (found.kind, found.objects) == (kind, {"train": 2, "val": 1})
    assert found.classes == {"cat": {"train": 1, "val": 1}, "dog": {"train": 1, "val": 0}}
    assert found.empty == {"train": 1, "val": 0} and not found.faults and not found.absent


def test_cocos_text_of_runs_is_undone_as_pycocotools_does():
    random = np.random.default_rng(0)
    for share in (0.01, 0.5, 0.99, 0.0, 1.0):
        mask = np.asfortranarray(random.random((37, 61)) < share, dtype=np.uint8)
        written = coco_masks.encode(mask)
        found = read_runs({"size": [37, 61], "counts": written["counts"].decode()})
        assert (found.paint(37, 61) == mask).all()
        if mask.any():
            x, y, w, h = coco_masks.toBbox(written)
            assert found.box() == (x, y, x + w, y + h)


def test_voc_counts_from_one_unless_a_zero_shows_that_it_does_not(tmp_path):
    trees.voc(tmp_path, based=0)
    xml = tmp_path / "Annotations/b.xml"
    xml.write_text(xml.read_text().replace("<xmin>10<", "<xmin>0<"))
    folder = read(tmp_path)
    assert folder.splits["val"].images[0].objects[0].box == (0, 8, 30, 20)
    assert any("0 occurs" in note for note in folder.notes)


def test_crowds_and_difficult_objects_are_crowds(tmp_path):
    xml = trees.voc(tmp_path / "voc") / "Annotations/b.xml"
    xml.write_text(xml.read_text().replace("</name>", "</name><difficult>1</difficult>"))
    path = trees.coco(tmp_path / "coco") / "annotations/instances_val2017.json"
    path.write_text(path.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))
    for root in (xml.parents[1], path.parents[1]):
        splits = read(root).splits
        assert splits["val"][0][1]["iscrowd"].tolist() == [1]
        assert splits["train"][0][1]["iscrowd"].tolist() == [0, 0]


def test_nothing_declared_is_split_by_name_and_seed(tmp_path):
    for number in range(20):
        trees.image(tmp_path / "images" / f"{number}.png", "a")
        trees.mask(tmp_path / "masks" / f"{number}_mask.png", trees.semantic("a"))
    folder = read(tmp_path)
    assert {which: len(split) for which, split in folder.splits.items()} == {
        "train": 14,
        "val": 2,
        "test": 4,
    }
    assert "test: 4 images split off, 20% of all, seed 0" in folder.notes
    again, other = read(tmp_path), read(tmp_path, seed=1)
    assert again.fingerprint == folder.fingerprint != other.fingerprint
    listed = folder.listed()
    assert [len(part) for part in (listed.train, listed.val, listed.test)] == [14, 2, 4]
    assert [s.path for s in listed.train] == [i.path for i in folder.splits["train"].images]


def test_black_and_white_masks_are_two_classes(tmp_path):
    for stem in "abc":
        trees.image(tmp_path / "images" / f"{stem}.png", stem)
        trees.mask(tmp_path / "masks" / f"{stem}.png", 255 * (trees.semantic(stem) > 0))
    folder = read(tmp_path, val_fraction=0, test_fraction=0)
    assert folder.classes == ("0", "255") and any("255 is the second" in n for n in folder.notes)
    assert folder.splits["train"][0][1]["mask"].unique().tolist() == [0, 1]


def test_roboflows_yaml_and_lists_are_found(tmp_path):
    trees.yolo(tmp_path)
    wanted = read(tmp_path).fingerprint
    lists = "train: train.txt\nval: [../images/val]\nnames: {1: dog, 0: cat}\n"
    trees.text(tmp_path / "data.yaml", "path: /content/pets\n" + lists)
    trees.text(tmp_path / "train.txt", "./images/train/a.png\nimages/train/c.png\n")
    assert read(tmp_path).fingerprint == read(tmp_path / "data.yaml").fingerprint == wanted


def test_pixels_that_two_classes_claim_are_ignored(tmp_path):
    content = trees.coco_content("train")
    content["annotations"][1]["segmentation"] = [trees.ring((10, 5, 20, 25))]
    trees.coco(tmp_path)
    trees.text(tmp_path / "annotations/instances_train2017.json", content)
    mask = read(tmp_path, kind="semantic").splits["train"][0][1]["mask"]
    assert (mask[5:25, 10:14] == 255).all() and (mask[5:25, 4:10] == 2).all()
    assert (mask[5:25, 14:20] == 1).all() and (mask == 255).sum() == 20 * 4


def test_labelmes_shapes_become_outlines(tmp_path):
    trees.image(tmp_path / "a.png", "a")
    trees.image(tmp_path / "b.png", "b")
    circle = {"label": "sun", "shape_type": "circle", "points": [[20, 15], [26, 23]]}
    corner = {"label": "roof", "shape_type": "rectangle", "points": [[9, 8], [2, 3]]}
    halves = [
        {"label": "car", "group_id": 5, "points": [[x, 0], [x + 4, 0], [x + 4, 9], [x, 9]]}
        for x in (10, 30)
    ]
    point = {"label": "dot", "shape_type": "point", "points": [[1, 1]]}
    shapes = {"shapes": [circle, corner, *halves, point], "imagePath": "..\\a.png"}
    trees.text(tmp_path / "a.json", shapes)
    folder = read(tmp_path, val_fraction=0, test_fraction=0)
    target = folder.splits["train"][0][1]
    found = dict(zip((folder.classes[n] for n in target["labels"]), target["boxes"], strict=True))
    assert found["roof"].tolist() == [2, 3, 9, 8] and found["car"].tolist() == [10, 0, 34, 9]
    assert found["sun"].tolist() == pytest.approx([10, 5, 30, 25])
    area = dict(zip(target["labels"].tolist(), target["area"].tolist(), strict=True))
    assert area[folder.classes.index("car")] == 72
    assert area[folder.classes.index("sun")] == pytest.approx(np.pi * 100, rel=0.03)
    assert [n.split()[0] for n in folder.notes[:2]] == ["1", "1"]


def test_a_turned_photograph_and_its_boxes_are_upright(tmp_path):
    trees.coco(tmp_path)
    path = tmp_path / "val2017/b.png"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.rotate(90, expand=True).save(path, exif=exif)
    image, target = read(tmp_path).splits["val"][0]
    x1, y1, x2, y2 = target["boxes"][0].int().tolist()
    assert image.shape[1:] == (trees.HEIGHT, trees.WIDTH)
    assert (image[0, y1:y2, x1:x2] == 250).all() and image[0, y1 - 1, x1 - 1] == 90


def test_masks_in_another_folder_are_found_by_name(tmp_path):
    for stem in "abc":
        trees.image(tmp_path / "images" / f"{stem}.png", stem)
        trees.mask(tmp_path / "annotations/trimaps" / f"{stem}.png", trees.semantic(stem))
    trees.text(tmp_path / "annotations/list.txt", "a 1")
    folder = read(tmp_path, val_fraction=0, test_fraction=0)
    for stem, (_, target) in zip(
        stems(folder.splits["train"]), folder.splits["train"], strict=True
    ):
        assert (target["mask"].numpy() == trees.semantic(stem)).all()


def test_ids_of_images_may_be_names(tmp_path):
    path = trees.coco(tmp_path) / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for entry in content["images"]:
        entry["id"] = f"x{entry['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"x{entry['image_id']}"
    path.write_text(json.dumps(content))
    split = read(tmp_path).splits["train"]
    assert [target["image_id"] for _, target in split] == [0, 1]
    assert [len(target["boxes"]) for _, target in split] == [2, 0]


def test_a_part_of_a_split_is_one_and_goes_to_workers(tmp_path):
    split = (
        read(trees.coco(tmp_path))
        .splits["train"]
        .with_transform(transforms("instances", 64, train=True, recipe="jitter"))
    )
    part = pickle.loads(pickle.dumps(split[1:]))
    assert len(part) == 1 and part.images == split.images[1:] and part[0][0].shape == (3, 64, 64)


def test_only_the_first_of_many_classes_are_printed(tmp_path):
    trees.yolo(tmp_path)
    names = [f"class {n}" for n in range(100)]
    trees.text(tmp_path / "data.yaml", f"train: images/train\nval: images/val\nnames: {names}\n")
    said = check(tmp_path).lines()
    assert "  ... and 60 more, see --json" in said and len(said) < 60


def test_lvis_and_oxfords_pets_and_label_studio_are_read(tmp_path):
    path = trees.coco(tmp_path / "lvis") / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for entry in content["images"]:
        entry["coco_url"] = f"http://images.cocodataset.org/train2017/{entry.pop('file_name')}"
    path.write_text(json.dumps(content))
    path.rename(path.with_name("lvis_v1_train.json"))
    assert sorted(stems(read(tmp_path / "lvis").splits["train"])) == ["a", "c"]

    pets = trees.voc(tmp_path / "pets")
    (pets / "Annotations").rename(pets / "xmls")
    (pets / "annotations").mkdir()
    (pets / "xmls").rename(pets / "annotations/xmls")
    (pets / "JPEGImages").rename(pets / "images")
    assert sorted(stems(read(pets).splits["train"])) == ["a", "c"]

    studio = trees.yolo(tmp_path / "studio")
    (studio / "data.yaml").unlink()
    trees.text(studio / "classes.txt", "cat\ndog\n")
    trees.text(studio / "notes.json", {"categories": [{"id": 0, "name": "cat"}], "info": {"v": 1}})
    found = read(studio)
    assert (found.format, found.classes, list(found.splits)) == (
        "YOLO",
        ("cat", "dog"),
        ["train", "val"],
    )

"""Every format, read exactly."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowtide.data import Dataset, check, read
from lowtide.errors import InputError


def names(data: Dataset, which: str) -> list[tuple[str, str]]:
    """Relative path and class name of each sample of a split."""
    return [
        (path.relative_to(data.root).as_posix(), data.classes[label])
        for path, label in getattr(data, which)
    ]


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders(paint, val):
    root = paint("train/b/1.png", "train/b/deep/2.JPG", "train/a/3.png", f"{val}/a/4.png")
    paint("test/b/5.png")
    (root / "train/a/notes.md").write_text("not an image")
    paint("train/.ipynb_checkpoints/0.png", "train/b/.ipynb_checkpoints/1.png")
    (root / "train/a/._3.png").write_text("litter of an archive")
    data = read(root)
    assert data.classes == ("a", "b")
    assert names(data, "train") == [
        ("train/a/3.png", "a"),
        ("train/b/1.png", "b"),
        ("train/b/deep/2.JPG", "b"),
    ]
    assert [label for _, label in data.train] == [0, 1, 1]
    assert names(data, "val") == [(f"{val}/a/4.png", "a")]
    assert names(data, "test") == [("test/b/5.png", "b")]
    assert len(data.notes) == 1 and "notes.md" in data.notes[0]


def test_val_is_split_off_train_and_a_test_that_is_missing_is_empty_and_said(paint):
    root = paint(*(f"train/{c}/{n}.png" for c in "ab" for n in range(10)))
    data = read(root, val_fraction=0.2)
    assert (len(data.train), len(data.val), data.test) == (16, 4, ())
    assert Counter(label for _, label in data.val) == {0: 2, 1: 2}
    assert data.notes == (
        "val: 4 images split off, 20% of each class, seed 0",
        "test: none",
    )
    assert read(root, val_fraction=0).val == ()


def test_class_folders_are_split_by_class_and_seed(cats_and_dogs):
    data = read(cats_and_dogs, seed=3)
    counts = {w: Counter(label for _, label in getattr(data, w)) for w in ("train", "val", "test")}
    assert counts == {"train": {0: 14, 1: 7}, "val": {0: 2, 1: 1}, "test": {0: 4, 1: 2}}
    assert len({path for w in counts for path, _ in getattr(data, w)}) == 30
    assert data == read(cats_and_dogs, seed=3)
    other = read(cats_and_dogs, seed=4)
    assert set(other.test) != set(data.test) and other.fingerprint != data.fingerprint


def test_small_classes_keep_one_image_for_training(paint):
    root = paint("a/1.png", "b/1.png", "b/2.png", *(f"c/{n}.png" for n in range(3)))
    data = read(root)
    assert [Counter(label for _, label in part) for part in (data.train, data.test, data.val)] == [
        {0: 1, 1: 1, 2: 1},
        {1: 1, 2: 1},
        {2: 1},
    ]


def test_a_copy_elsewhere_splits_alike_and_has_the_same_fingerprint(
    cats_and_dogs, tmp_path_factory
):
    there = tmp_path_factory.mktemp("there") / "pets"
    shutil.copytree(cats_and_dogs, there)
    here, copy = read(cats_and_dogs), read(there)
    assert copy.fingerprint == here.fingerprint
    assert [names(copy, which) for which in ("train", "val", "test")] == [
        names(here, which) for which in ("train", "val", "test")
    ]
    with (there / "cat/0.png").open("ab") as file:
        file.write(b"\0")
    assert read(there).fingerprint != here.fingerprint


def vtab(paint, classes: str | None) -> Path:
    for name, labels in (("train800", (1, 0, 10, 2)), ("val200", (2, 1)), ("test", (10,))):
        files = [f"images/{name}/{number:06}.jpg" for number in range(len(labels))]
        root = paint(*files)
        lines = [f"{file} {label}\n" for file, label in zip(files, labels, strict=True)]
        (root / f"{name}.txt").write_text("".join(lines))
    union = (root / "train800.txt").read_text() + (root / "val200.txt").read_text()
    (root / "train800val200.txt").write_text(union)
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def test_vtab_lists(paint):
    data = read(vtab(paint, None))
    assert data.format == "lists (train800.txt, val200.txt, test.txt)"
    assert data.classes == ("0", "1", "2", "10")
    assert [label for _, label in data.train] == [1, 0, 3, 2]
    assert names(data, "val") == [
        ("images/val200/000000.jpg", "2"),
        ("images/val200/000001.jpg", "1"),
    ]
    assert names(data, "test") == [("images/test/000000.jpg", "10")]


def test_integer_labels_are_indices_into_classes_txt_whatever_the_names(paint):
    data = read(vtab(paint, "\n".join(str(11 - n) for n in range(12))))
    assert len(data.classes) == 12
    assert [label for _, label in data.train] == [1, 0, 10, 2]
    assert data.classes[data.test[0].label] == "1"


def test_the_fingerprint_tells_labels_apart(paint):
    root = paint("a.png", "b.png")
    prints = []
    for text in ("a.png 0\nb.png 1\n", "b.png 1\na.png 0\n", "a.png 1\nb.png 0\n"):
        (root / "train.txt").write_text(text)
        prints.append(read(root, val_fraction=0).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_the_union_list_is_the_final_protocol_and_never_validates_on_itself(paint):
    root = vtab(paint, None)
    data = read(root / "train800val200.txt")
    assert (len(data.train), data.val, len(data.test)) == (6, (), 1)
    assert data.format == "lists (train800val200.txt, test.txt)"
    assert data.notes == ("val: none",)
    (root / "train800.txt").unlink()
    data = read(root)
    assert len(data.train) + len(data.val) == 6 and len(data.test) == 1


def test_plain_lists_with_blanks_tabs_backslashes_and_names(paint):
    root = paint("my cat 1.png", "sub dir/dog.png", "c.png", "d.png")
    (root / "train.txt").write_bytes(
        "\ufeffmy cat 1.png cat\r\nsub dir\\dog.png\tdog\r\n\r\n".encode()
    )
    (root / "Valid.txt").write_text("c.png dog\n")
    (root / "test.txt").write_text("d.png   cat  \n")
    data = read(root)
    assert names(data, "train") == [("my cat 1.png", "cat"), ("sub dir/dog.png", "dog")]
    assert names(data, "val") == [("c.png", "dog")]
    assert names(data, "test") == [("d.png", "cat")]
    assert read(root / "train.txt") == data


def test_a_list_of_any_other_name_is_split(paint):
    root = paint(*(f"{n}.png" for n in range(20)))
    (root / "labels.txt").write_text("".join(f"{n}.png {n % 2}\n" for n in range(20)))
    data = read(root / "labels.txt")
    assert [len(part) for part in (data.train, data.val, data.test)] == [14, 2, 4]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_with_a_split_column(paint, tmp_path, delimiter):
    paint("x/a, b.png", "x/c.png", "x/d.png", "x/e.png")
    rows = [
        ("Filename", "Class", "split", "weight"),
        ('"a, b.png"', "cat", "train", "1"),
        ("c.png", " dog ", "Training", "2"),
        ("d.png", "dog", "valid", ""),
        ("e.png", "cat", "test", ""),
    ]
    file = tmp_path / "x/table.csv"
    file.write_text("\r\n".join(delimiter.join(row) for row in rows))
    data = read(file)
    assert data.classes == ("cat", "dog") and data.root == tmp_path / "x"
    assert names(data, "train") == [("a, b.png", "cat"), ("c.png", "dog")]
    assert names(data, "val") == [("d.png", "dog")]
    assert names(data, "test") == [("e.png", "cat")]


def test_csv_without_a_split_column_is_split(paint):
    root = paint(*(f"{n}.png" for n in range(20)))
    file = root / "labels.csv"
    file.write_text("image,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(20)))
    data = read(file)
    assert [len(part) for part in (data.train, data.val, data.test)] == [14, 2, 4]


def test_description_is_json_and_complete(cats_and_dogs):
    data = read(str(cats_and_dogs))
    assert json.loads(json.dumps(data.describe())) == {
        "format": "class folders",
        "train": 21,
        "val": 3,
        "test": 6,
        "classes": ["cat", "dog"],
        "fingerprint": data.fingerprint,
        "notes": [
            "test: 6 images split off, 20% of each class, seed 0",
            "val: 3 images split off, 10% of each class, seed 0",
        ],
        "skipped": [],
        "bits": 16,
    }


def test_classes_come_in_one_order_in_every_format(paint):
    root = paint(*(f"as_folders/{label}/0.png" for label in (10, 9, 0)))
    (root / "list.txt").write_text("".join(f"as_folders/{n}/0.png {n}\n" for n in (10, 9, 0)))
    assert read(root / "as_folders").classes == read(root / "list.txt").classes == ("0", "9", "10")


def test_images_of_every_readable_kind_count_and_what_is_ignored_is_said(paint):
    root = paint(*(f"{c}/{n}.{s}" for c in "ab" for n, s in enumerate(("png", "gif", "jfif"))))
    paint("a/@eaDir/0.png/thumb.jpg", "@eaDir/x/0.jpg", "b/__MACOSX/0.png", "b/Thumbs.db.png")
    (root / "b/Thumbs.db").write_bytes(b"x")
    (root / "notes.md").write_text("not read")
    (root / "b/clip.mp4").write_bytes(b"x")
    data = read(root, val_fraction=0, test_fraction=0)
    assert len(data.train) == 7
    assert data.notes[0] == (
        f"ignored 2 files that are no images (1 .md, 1 .mp4), first {root}/notes.md"
    )


def test_linked_folders_are_followed_and_none_is_entered_twice(paint, tmp_path_factory):
    pool = tmp_path_factory.mktemp("pool")
    root = paint("a/1.png", "b/1.png")
    (pool / "deep").mkdir()
    for n in range(4):
        shutil.copy(root / "a/1.png", pool / f"deep/{n}.png")
    (root / "a/more").symlink_to(pool)
    (root / "a/again").symlink_to(pool / "deep")
    (root / "a/circle").symlink_to(root / "a")
    data = read(root, val_fraction=0, test_fraction=0)
    assert sorted(Path(name).name for name, label in names(data, "train") if label == "a") == [
        "0.png",
        "1.png",
        "1.png",
        "2.png",
        "3.png",
    ]
    assert data.notes[0].startswith("ignored 2 files that are no images or folders seen before")


def test_one_folder_linked_into_two_splits_is_refused(paint):
    root = paint("train/a/1.png", "train/b/1.png", "test/b/2.png")
    (root / "test/a").symlink_to(root / "train/a")
    with pytest.raises(InputError, match="1 images are listed more than once"):
        read(root)


def test_a_broken_link_is_named_with_where_it_leads(paint):
    root = paint("a/1.png", "b/1.png")
    (root / "a/2.png").symlink_to("/gone/2.png")
    with pytest.raises(InputError, match=r"2\.png.*; it is a link to /gone/2\.png, which is not"):
        read(root)


@pytest.mark.parametrize(
    ("written", "classes", "found"),
    [
        (("007", "042", "100"), None, ("007", "042", "100")),
        (("1", "01", "2"), None, ("01", "1", "2")),
        (("10", "9", "100"), None, ("9", "10", "100")),
        (("007", "042", "100"), ("100", "042", "007"), ("100", "042", "007")),
        (("2", "0", "1"), ("x", "y", "z"), ("x", "y", "z")),
    ],
)
def test_labels_are_text_but_where_they_count_lines(paint, written, classes, found):
    root = paint("0.png", "1.png", "2.png")
    rows = "".join(f"{n}.png,{label}\n" for n, label in enumerate(written))
    (root / "table.csv").write_text("path,label\n" + rows)
    if classes:
        (root / "classes.txt").write_text("\n".join(classes))
    data = read(root / "table.csv", val_fraction=0, test_fraction=0)
    assert data.classes == found
    meant = [found[int(label)] for label in written] if found[0] == "x" else list(written)
    assert [data.classes[sample.label] for sample in data.train] == meant
    noted = "classes '01' and '1' are one number, and count as several classes"
    assert (noted in data.notes) == ("01" in written)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Cat", "cat"), "classes 'Cat' and 'cat' differ in case"),
        (("caf\u00e9", "cafe\u0301"), r"classes 'cafe\u0301' and 'caf\xe9' differ in case"),
        (("a b", "a\u00a0b"), r"classes 'a b' and 'a\xa0b' differ in case, blanks"),
        (("cat", "cat\u200b"), r"classes 'cat' and 'cat\u200b' differ in case, blanks or enc"),
        (("Кот", "кот"), "classes 'Кот' and 'кот' differ in case"),
        (("cat", "cats"), None),
        (("a,b", "a"), None),
    ],
)
def test_names_that_may_be_one_are_said(paint, names, said):
    root = paint("0.png", "1.png", *(f"set/{name}/{n}.png" for n, name in enumerate(names)))
    (root / "table.csv").write_text(
        "path,label\n" + "".join(f'{n}.png,"{name}"\n' for n, name in enumerate(names))
    )
    for source in (root / "table.csv", root / "set"):
        data = read(source, val_fraction=0, test_fraction=0)
        notes = [note for note in data.notes if "differ in" in note or "semicolon" in note]
        assert len(notes) == (said is not None) and (not notes or notes[0].startswith(said))
        assert check(source).classes.keys() == {*names}


def test_labels_with_zeros_before_them_that_classes_txt_lacks_are_refused(paint):
    root = paint("0.png", "1.png")
    (root / "table.csv").write_text("path,label\n0.png,01\n1.png,00\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match=r"table\.csv:2: label '01' is not in classes\.txt"):
        read(root / "table.csv")


def test_a_set_of_twelve_bits_is_read_as_such_and_says_so(paint):
    root = paint("a/1.png", "b/1.png")
    for n, name in enumerate("ab"):
        grey = np.full((4, 4), 4000 + n, dtype=np.uint16)
        Image.fromarray(grey).save(root / f"{name}/16.png")
    data = read(root, val_fraction=0, test_fraction=0)
    assert data.bits == 12 and data.describe()["bits"] == 12
    assert data.notes[0] == (
        "2 images have 16-bit pixels and none is above 4001: they are taken for 12 bits, "
        "value v is read as v / 16"
    )
    assert check(root).notes[0] == data.notes[0]


@pytest.mark.parametrize(("count", "val", "test"), [(16, 2, 3), (14, 1, 3), (17, 2, 3), (18, 2, 4)])
def test_shares_are_rounded_not_cut(paint, count, val, test):
    root = paint(*(f"{c}/{n}.png" for c in "ab" for n in range(count)))
    data = read(root)
    assert (len(data.val), len(data.test)) == (2 * val, 2 * test)

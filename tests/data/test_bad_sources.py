"""What cannot work is refused at the door, in one line that names the offender."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lowtide.data import read
from lowtide.errors import InputError


def refusal(source: Path | str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_wrong_path_gets_the_nearest_name(paint):
    root = paint("flowers/train/a/1.png")
    assert refusal(root / "flwoers/train") == (
        f"{root}/flwoers/train does not exist; did you mean {root}/flowers/train?"
    )
    assert refusal(root / "zzz") == f"{root}/zzz does not exist"


def test_what_is_no_file_is_said_to_be_none(paint):
    root = paint("a/0.png", "b/0.png")
    os.mkfifo(root / "a" / "pipe.png")
    assert refusal(root).endswith("; what has that name is no file")


def test_folders_that_hold_no_data_set(paint, tmp_path):
    assert "is empty: expected one sub-folder" in refusal(tmp_path)
    root = paint("nested/train/a/1.png", "flat/1.png", "flat/2.png", "lone/pets/cat/1.png")
    paint("untrained/val/a/1.png", "untrained/test/a/1.png")
    (root / "tabular").mkdir()
    (root / "tabular/labels.csv").write_text("path,label\n")
    assert f"did you mean {root}/nested?" in refusal(root)
    assert f"did you mean {root}/lone/pets?" in refusal(root / "lone")
    assert f"did you mean {root}/tabular/labels.csv?" in refusal(root / "tabular")
    assert "2 images lie outside any class folder (first: 1.png)" in refusal(root / "flat")
    assert refusal(root / "untrained") == (
        f"{root}/untrained has nothing to train on, only test, val (split folders)"
    )
    paint("untrained/b/1.png")
    assert "has no train folder, only b, test, val" in refusal(root / "untrained")
    assert "1.png is a file: expected a folder" in refusal(root / "flat/1.png")


def test_a_class_folder_without_images(paint):
    root = paint("a/1.png", "b/1.png")
    (root / "c").mkdir()
    (root / "c/clip.mp4").touch()
    assert refusal(root) == f"class folder {root}/c has no images (it holds .mp4)"


def test_an_unlabelled_test_folder_and_two_folders_for_one_role(paint):
    root = paint("train/a/1.png", "train/b/1.png", "test/1.png")
    assert f"{root}/test: 1 images lie outside any class folder" in refusal(root)
    (root / "test/1.png").unlink()
    assert refusal(root).startswith(f"{root}/test is empty")
    paint("val/a/1.png", "valid/a/1.png", "test/a/1.png")
    assert refusal(root) == f"{root}: both val and valid are val"


def test_one_class_only(paint):
    root = paint("cat/1.png", "cat/2.png")
    assert refusal(root) == f"{root}: only one class to learn, 'cat'; expected two or more"


def test_a_class_that_train_lacks(paint):
    root = paint("train/cat/1.png", "train/dog/1.png", "test/cats/1.png")
    assert refusal(root) == (
        f"{root}/test/cats: class 'cats' of test is not in train; did you mean cat?"
    )


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("a.png 0\nb.png\n", r"train.txt:2: expected `path label`, got 'b.png'"),
        ("a.png 0\nb c.png\n", r"train.txt:2: expected `path label`, got 'b c.png'"),
        ("a.png 0\nb.png,1\n", r"train.txt:2: expected `path label`, got 'b.png,1'"),
        ("a.png 0\nb.png -1\n", r"^train.txt:2: label '-1' is neither an integer from 0 up"),
        ("a.png 0\nb.png 1.0\n", r"^train.txt:2: label '1.0' is neither an integer from 0 up"),
        ("a.png 0\nb.png cat\n", r"^train.txt:2: label 'cat', but the labels before it are int"),
        ("a.png cat\nb.png 1\n", r"^train.txt:2: label '1', but the labels before it are class n"),
        ("a.png 0\nb.png 1\na.png 1\n", r"^1 images .* more than once, .*a.png: train.txt:1, tr"),
        ("a.png 0\nb.png 0\n", r"only one class to learn, '0'"),
        ("a.png 0\nb.png 1\nx/c.png 1\ny.png 1", r"^2 of 4 files do not exist, first .*/x/c.png "),
        ("a.png 0\nb 1\n", r"^1 of 2 files .*/b \(train.txt:2\); did you mean .*/b.png\?$"),
        ("a.png 0\nb.png " + "9" * 5000, r"^train.txt:2: label '9+' is neither an integer"),
        ("a.png 0\n" + "b" * 5000 + " 1", r"^1 of 2 files do not exist, first"),
        ("\n\n", r"train.txt is empty: expected lines `path label`"),
    ],
)
def test_lists_that_do_not_parse(paint, train, expected):
    root = paint("a.png", "b.png")
    (root / "train.txt").write_text(train)
    assert re.search(expected, refusal(root))


def test_labels_outside_classes_txt(paint):
    root = paint("a.png", "b.png")
    (root / "train.txt").write_text("a.png 0\nb.png 2\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    assert refusal(root) == "train.txt:2: label 2, but classes.txt names only 2"
    (root / "train.txt").write_text("a.png cat\nb.png dgo\n")
    assert refusal(root) == "train.txt:2: label 'dgo' is not in classes.txt"
    (root / "classes.txt").write_text("cat\ncat\n")
    assert refusal(root) == f"{root}/classes.txt:2: expected a new class name, got 'cat'"


def test_an_image_in_train_and_test(paint):
    root = paint("a.png", "b.png")
    (root / "train.txt").write_text("a.png 0\nb.png 1\n")
    (root / "test.txt").write_text("x/../b.png 1\n")
    assert refusal(root) == (
        f"1 images are listed more than once, first {root}/b.png: train.txt:2, test.txt:1"
    )


def test_lists_for_the_wrong_role(paint):
    root = paint("a.png")
    for name in ("val.txt", "test.txt"):
        (root / name).write_text("a.png 0\n")
    assert "has nothing to train on, only val, test (lists (val.txt, test.txt))" in refusal(root)
    assert "has nothing to train on, only val (lists (val.txt))" in refusal(root / "val.txt")
    for name in ("train800.txt", "train.txt"):
        (root / name).write_text("a.png 0\n")
    assert "train.txt and train800.txt are all lists for train" in refusal(root)
    (root / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert refusal(root / "binary.txt").endswith("binary.txt: not UTF-8 text")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            "name,label\na.png,0\n",
            "no column path or image or file or filename; its columns are na",
        ),
        ("path,kind\na.png,0\n", "no column label or class; its columns are path, kind"),
        ("", "no column path or image or file or filename; its columns are none"),
        ("path,label,label\na.png,0,1\n", "table.csv: column label is there twice"),
        ("path,label,Split,split\na.png,0,test,train\n", "table.csv: column split is there twice"),
        ("path,label\n", "has no rows below its header"),
        ("path,label\na.png,0\nb.png\n", "table.csv:3: expected a path and a label"),
        ("path,label\na.png,0\n,1\n", "table.csv:3: expected a path and a label"),
        ("path,label\na.png,0\nb.png,1.0\n", "table.csv:3: label '1.0' is neither an integer"),
        ('path,label\na.png,0\n"b.png,1\n', "table.csv:2: not a CSV row"),
        ('"path,label\na.png,0\n', "not a CSV row"),
        ("path,label,split\na.png,0,holdout\n", "table.csv:2: unknown split 'holdout', expected"),
        (
            "path,label,split\na.png,0,test\n",
            "has nothing to train on, only test (csv (table.csv))",
        ),
        ("path,label\na.png,0\nc.png,1\n", "1 of 2 files do not exist, first"),
    ],
)
def test_tables_that_do_not_parse(paint, table, expected):
    root = paint("a.png", "b.png")
    (root / "table.csv").write_text(table)
    assert expected in refusal(root / "table.csv")


def test_unreadable_images_are_named_or_skipped_and_recorded(cats_and_dogs):
    whole = (cats_and_dogs / "dog/0.png").read_bytes()
    (cats_and_dogs / "dog/0.png").write_bytes(whole[: len(whole) // 2])
    (cats_and_dogs / "cat/1.png").write_text("<html>404</html>")
    (cats_and_dogs / "cat/2.png").write_bytes(b"")
    (cats_and_dogs / "cat/3.png").write_bytes(b"")
    message = refusal(cats_and_dogs)
    assert message.startswith(
        f"4 of 30 images cannot be read: {cats_and_dogs}/cat/1.png (not an image); "
        f"{cats_and_dogs}/cat/2.png (not an image); {cats_and_dogs}/cat/3.png"
    )
    assert message.endswith("; ... (--skip-bad-images leaves them out)")
    data = read(cats_and_dogs, skip_bad_images=True)
    kept = {path.relative_to(data.root).as_posix() for path, _ in data.train + data.val + data.test}
    assert len(kept) == 26 and not kept & {"dog/0.png", "cat/1.png", "cat/2.png", "cat/3.png"}
    assert [line.partition(":")[0] for line in data.describe()["skipped"]] == [
        "cat/1.png",
        "cat/2.png",
        "cat/3.png",
        "dog/0.png",
    ]


def test_a_class_none_of_whose_images_can_be_read(paint):
    root = paint("a/1.png", "b/1.png")
    (root / "b/1.png").write_bytes(b"")
    assert refusal(root, skip_bad_images=True) == f"{root}: no image of class 'b' can be read"


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.1, 1.0)])
def test_shares_that_leave_nothing(cats_and_dogs, val, test):
    assert "expected shares" in refusal(cats_and_dogs, val_fraction=val, test_fraction=test)

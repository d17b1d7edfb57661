"""Tables and lists whose labels are several names, or a number."""

from __future__ import annotations

import pytest

from lowtide import InputError
from lowtide.data import check, read

NAMES = [f"{i}.png" for i in range(6)]


@pytest.fixture
def table(paint):
    """Write a table of six images from a head and a row of values for each."""
    root = paint(*NAMES)

    def table(head, *rows, name="table.csv"):
        lines = [f"path,{head}", *(f"{n},{row}" for n, row in zip(NAMES, rows, strict=True))]
        (root / name).write_text("\n".join(lines) + "\n")
        return root / name

    return table


def labels(data):
    """The text of each image's label, by file name."""
    everywhere = (*data.train, *data.val, *data.test)
    return {s.path.name: data.text(s.label) for s in everywhere}


def test_columns_of_0_and_1_are_labels_by_their_names(table):
    path = table("Cat,007,крот", "1,0,0", "0,1,1", "0,0,0", "true,0,1", "1,1,1", "0,1,0")
    data = read(path, task="multilabel")
    assert data.classes == ("Cat", "007", "крот")
    said = ["Cat", "007;крот", "", "Cat;крот", "Cat;007;крот", "007"]
    assert labels(data) == dict(zip(NAMES, said, strict=True))
    assert {len(s) for s in (data.train, data.val, data.test)} == {4, 1}
    assert any("10% of all" in note for note in data.notes)
    some = read(path, task="multilabel", target="007, Cat")
    assert some.classes == ("007", "Cat")


def test_one_column_of_names_with_semicolons_says_the_same(table):
    one = table("labels", "Cat", "007;крот", "", " Cat ; крот", "Cat;007;крот", "007")
    data = read(one, task="multilabel")
    assert data.classes == ("007", "Cat", "крот")
    assert labels(data)["3.png"] == "Cat;крот" and labels(data)["2.png"] == ""
    assert data.train[0].label == tuple(
        float(n in labels(data)[data.train[0].path.name].split(";")) for n in data.classes
    )


@pytest.mark.parametrize("between", [",", "|", " , "])
def test_a_list_of_names_that_no_semicolon_divides_is_said(table, between):
    path = table("labels", *[f'"cat{between}dog"', "cat", "dog"] * 2)
    notes = read(path, task="multilabel", val_fraction=0, test_fraction=0).notes
    assert f"label 'cat{between}dog' counts as one label of its own: a semicolon" in "".join(notes)


def test_a_number_is_read_from_a_column_of_any_name(table):
    path = table("Age,sex", "1.5,m", "2,f", "-3e2,m", "4,f", "5,m", "6,f")
    data = read(path, task="regress", target="Age")
    assert labels(data)["2.png"] == "-300.0" and data.classes == ("Age",)
    alone = table("value", *"123456", name="alone.csv")
    assert read(alone, task="regress").classes == ("value",)
    again = read(alone, task="regress", classes=("Age",))
    assert again.classes == ("Age",)


def test_lists_hold_them_too(paint):
    root = paint(*NAMES)
    (root / "list.txt").write_text("".join(f"{n} {i}.5\n" for i, n in enumerate(NAMES)))
    assert labels(read(root / "list.txt", task="regress"))["3.png"] == "3.5"
    (root / "train.txt").write_text("0.png a;b\n1.png b\n")
    (root / "val.txt").write_text("2.png a\n")
    data = read(root, task="multilabel")
    assert [len(s) for s in (data.train, data.val, data.test)] == [2, 1, 0]
    assert data.classes == ("a", "b") and labels(data)["0.png"] == "a;b"


@pytest.mark.parametrize(
    ("head", "rows", "options", "said"),
    [
        ("a,b", "1,0 0,1 0,2 0,0 1,1 0,0", {"task": "multilabel"}, r"csv:4: column b holds '2'"),
        (
            "a,b",
            "1,2 0,1 0,2 0,0 1,1 0,0",
            {"task": "regress"},
            "found a, b; name it with --target",
        ),
        ("age", "1 2 x 4 5 6", {"task": "regress"}, r"csv:4: column age holds 'x', expected a num"),
        ("age", "1 2 nan 4 5 6", {"task": "regress"}, "'nan', expected a number"),
        ("age", "1 2 3 4 5 6", {"task": "regress", "target": "agee"}, "did you mean age"),
        ("label", "a a;a b c d e", {"task": "multilabel"}, "'a' is there twice"),
        (
            "label,split",
            "a,train b,train c,val a,val a,val b,val",
            {"task": "multilabel"},
            "'c' is not in",
        ),
        ("x,x", "1,0 0,1 0,1 0,0 1,1 0,0", {"task": "multilabel"}, "column x is there twice"),
        ("label,n", "a,1 b,1 a,1 b,1 a,1 b,1", {"target": "n"}, "not for task classify"),
        ("cat,dog", "1,0 0,1 0,1 0,0 1,1 0,0", {}, "--task multilabel or regress"),
    ],
)
def test_what_cannot_be_learnt_is_refused_with_its_place(table, head, rows, options, said):
    with pytest.raises(InputError, match=said):
        read(table(head, *rows.split()), **options)


def test_folders_of_classes_are_no_numbers(cats_and_dogs):
    with pytest.raises(InputError, match=r"one class per image; task regress learns from a list"):
        read(cats_and_dogs, task="regress")


def test_check_counts_labels_and_gives_the_range_of_numbers(table):
    path = table("a,b,n", "1,0,3", "0,1,4.5", "0,0,-1", "1,1,2", "1,0,2", "0,0,7")
    found = check(path, task="multilabel", target="a,b")
    counted = {s.path.name for s in read(path, task="multilabel", target="a,b").train}
    has = {"0.png": "a", "1.png": "b", "3.png": "ab", "4.png": "a"}
    labels = [name for n in counted for name in has.get(n, "")]
    assert found.classes == {"a": labels.count("a"), "b": labels.count("b")}
    found = check(path, task="regress", target="n")
    numbers = [s.label[0] for s in read(path, task="regress", target="n").train]
    assert found.values == (min(numbers), max(numbers)) and found.classes == {}
    assert f"values: {min(numbers):g} to {max(numbers):g}" in found.lines()

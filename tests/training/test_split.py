"""A run keeps its split: what is scored is what it was, and never what the run has learnt from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from tinted import write_tinted

from lowtide import METHODS, InputError
from lowtide.cli import main
from lowtide.data import read
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.training.split import SPLIT, Split


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on a folder without declared splits: three classes of ten images."""
    root = tmp_path_factory.mktemp("split")
    write_tinted(root, {"all": 10})
    config = RunConfig(
        model="vit_micro_patch4_32",
        data=str(root / "all"),
        method=METHODS["linear"](),
        epochs=1,
        batch_size=16,
        warmup_epochs=0.0,
        device="cpu",
    )
    train(config, root / "run")
    return root


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run whose images may be changed."""
    shutil.copytree(finished / "all", tmp_path / "all")
    shutil.copytree(finished / "run", tmp_path / "run")
    path = tmp_path / "run/config.yaml"
    path.write_text(path.read_text().replace(str(finished / "all"), str(tmp_path / "all")))
    return tmp_path / "run"


def scored(capsys, run, *options):
    """Score a run; give the number of images and what is said beside it."""
    capsys.readouterr()
    assert main(["eval", str(run), "--json", "--device", "cpu", *map(str, options)]) == 0
    out, err = capsys.readouterr()
    return json.loads(out)["images"], err


def paths(run, which):
    return [run.parent / "all" / p for p in Split.read(run).images[which]]


def test_the_split_is_that_of_the_data_and_reads_back(run, capsys):
    dataset = read(run.parent / "all")
    split = Split.of(dataset)
    assert split == Split.read(run)
    assert {w: len(v) for w, v in split.images.items()} == {"train": 21, "val": 3, "test": 6}
    assert scored(capsys, run) == (6, "")
    assert scored(capsys, run, "--split", "all") == (30, "")


def test_deleted_test_images_are_not_replaced_by_those_learnt_from(run, capsys):
    gone = paths(run, "test")
    for path in gone[:-1]:
        path.unlink()
    images, said = scored(capsys, run)
    assert images == 1
    assert "5 (first" in said and "of the 6 images of its test split are gone" in said
    gone[-1].unlink()
    assert main(["eval", str(run), "--device", "cpu"]) == 2


def test_changed_relabelled_and_new_images_are_left_out(run, capsys):
    changed, relabelled, *_ = (p for p in paths(run, "test") if p.parent.name == "red")
    shutil.copy(paths(run, "train")[0], changed)
    relabelled.rename(relabelled.parents[1] / "blue/another.png")
    shutil.copy(paths(run, "val")[0], run.parent / "all/green/new.png")
    images, said = scored(capsys, run)
    assert images == 4
    assert "have changed" in said and "are gone" in said
    assert "2 (first 'green/new.png') new" in said


def test_a_label_that_changed_in_a_list(tmp_path):
    write_tinted(tmp_path, {"all": 5})
    lines = [f"all/{c}/{i}.png {c}" for c in ("red", "green", "blue") for i in range(5)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    split = Split.of(read(tmp_path / "list.txt"))
    (path,) = [p for p in split.images["test"] if "red" in p]
    text = (tmp_path / "list.txt").read_text()
    (tmp_path / "list.txt").write_text(text.replace(f"{path} red", f"{path} blue"))
    samples, notes = split.select(read(tmp_path / "list.txt"), "test")
    assert len(samples) == 2
    assert notes == [
        f"1 (first {path!r}) of the 3 images of its test split have another label since the run and"
        " left out"
    ]


def test_other_data_never_hold_what_the_run_has_learnt_from(run, capsys):
    other = run.parent / "other"
    for i, path in enumerate([*paths(run, "train")[:2], *paths(run, "test")[:3]]):
        (other / "test" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, other / "test" / path.parent.name / f"{i}.png")
    images, said = scored(capsys, run, "--data", other)
    assert images == 3
    assert "has learnt from 2 of the 5 images of split test" in said
    images, said = scored(capsys, run, "--data", other, "--split", "all")
    assert images == 5 and "has learnt from 2 of these 5" in said


def test_the_runs_own_data_by_another_name_are_its_own(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    paths(run, "test")[0].unlink()
    images, said = scored(capsys, run, "--data", "all")
    assert images == 5 and "are gone" in said


def test_images_learnt_from_are_no_validation(finished, tmp_path, capsys):
    config = RunConfig.from_dict(json.loads((finished / "run/summary.json").read_text())["config"])
    train(replace(config, train_on_val=True), tmp_path / "run")
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--split", "val", "--device", "cpu"]) == 2
    assert "has learnt from its validation images" in capsys.readouterr().err
    assert scored(capsys, tmp_path / "run", "--split", "train")[0] == 24


def test_a_run_without_its_split_is_scored_only_where_nothing_changed(run, capsys):
    (run / SPLIT).unlink()
    assert scored(capsys, run) == (6, "")
    paths_ = sorted((run.parent / "all/red").glob("*.png"))
    paths_[0].unlink()
    assert main(["eval", str(run), "--device", "cpu"]) == 2
    assert "have changed" in capsys.readouterr().err
    assert scored(capsys, run, "--split", "all")[0] == 29


@pytest.mark.parametrize("text", ["", "{", "[]", '{"train": 3}', '{"train": {"a": ["b"]}}'])
def test_a_damaged_split_is_one_line(run, text):
    (run / SPLIT).write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        Split.read(run)


def write_lists(root):
    for part, first in {"train": 0, "val": 6, "test": 8}.items():
        lines = [f"all/{c}/{i}.png {c}" for c in ("red", "blue") for i in range(first, first + 2)]
        (root / f"{part}.txt").write_text("\n".join(lines))
    return root


def write_table(root, head="label"):
    rows = [f"all/{c}/{i}.png,{c}" for c in ("red", "green", "blue") for i in range(10)]
    (root / "table.csv").write_text("\n".join([f"path,{head}", *rows]))
    return root / "table.csv"


def write_json(root):
    for part, first in {"train": 0, "val": 6, "test": 8}.items():
        names = [f"all/{c}/{i}.png" for c in ("red", "blue") for i in range(first, first + 2)]
        (root / f"{part}.json").write_text(json.dumps({n: n[4:5] for n in names}))
    return root


def write_folders(root):
    for part in ("train", "test"):
        shutil.copytree(root / "all", root / "split" / part)
        for path in (root / "split" / part).glob("*/*.png"):
            path.write_bytes(path.read_bytes() + part.encode())  # other bytes, the same pixels
    return root / "split"


SOURCES = {
    "class folders": (lambda root: root / "all", {}),
    "split folders": (write_folders, {}),
    "lists": (write_lists, {}),
    "a table": (write_table, {}),
    "JSON lists": (write_json, {}),
    "a table of labels": (lambda root: write_table(root, "labels"), {"task": "multilabel"}),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_in_every_format_what_became_of_images_is_said(tmp_path, kind):
    root = tmp_path / "here"
    write_tinted(root, {"all": 10})
    make, options = SOURCES[kind]
    source = make(root)
    dataset = read(source, **options)
    split = Split.of(dataset)
    samples, notes = split.select(dataset, "test")
    assert {s.path for s in samples} == {s.path for s in dataset.test} and notes == []
    shutil.copytree(root, tmp_path / "moved")
    there = tmp_path / "moved" / source.relative_to(root)
    moved = read(there, **options)
    assert split.holds(moved)
    assert [s.path.name for s in split.select(moved, "test")[0]] == [s.path.name for s in samples]
    changed = samples[0].path
    changed.write_bytes(changed.read_bytes() + b"more")
    samples_, (note,) = split.select(read(source, **options), "test")
    assert len(samples_) == len(samples) - 1 and "1 (first " in note and "have changed" in note
    for sample in moved.test + moved.train:
        sample.path.write_bytes(sample.path.read_bytes() + b"other")
    assert not split.holds(read(there, **options))


def test_renamed_images_are_followed_and_a_copy_is_not(run, capsys):
    folder = run.parent / "all"
    (red,) = [p for p in paths(run, "test") if p.parent.name == "red"][:1]
    (folder / "red/deeper").mkdir()
    red.rename(folder / "red/deeper/other.png")
    shutil.copy(paths(run, "train")[0], folder / "blue/copy.png")
    images, said = scored(capsys, run)
    assert images == 6 and "1 (first 'red/" in said and "renamed since the run" in said
    assert "1 (first 'blue/copy.png') new" in said
    assert scored(capsys, run, "--split", "all")[0] == 30


def test_data_that_moved_are_the_runs_own(run, capsys):
    paths(run, "test")[0].unlink()
    moved = run.parent / "elsewhere"
    (run.parent / "all").rename(moved)
    assert main(["eval", str(run), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "does not exist" in said and "--data says where" in said
    images, said = scored(capsys, run, "--data", moved)
    assert images == 5 and "moved: its split is used" in said and "are gone" in said


def test_an_image_that_is_broken_now_is_named_and_the_others_scored(run, capsys):
    paths(run, "test")[0].write_bytes(b"broken")
    images, said = scored(capsys, run)
    assert images == 5 and "cannot be read" in said and paths(run, "test")[0].name in said


def test_a_split_of_other_data_that_was_drawn_is_said_so(run, capsys):
    other = write_tinted(run.parent / "more", {"fresh": 15}) / "fresh"
    for path in other.glob("*/*.png"):
        path.write_bytes(path.read_bytes() + b"fresh")
    images, said = scored(capsys, run, "--data", other)
    assert images == 9 and "9 images split off" in said and "--split all" in said

"""Sets whose images are no files are written out once, and then read as files."""

from __future__ import annotations

import importlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowtide.data import decode, read
from lowtide.data.store import Picture, keep, store_folder
from lowtide.errors import InputError


@pytest.fixture(autouse=True)
def store(tmp_path_factory, monkeypatch) -> Path:
    """A store of its own for each test."""
    folder = tmp_path_factory.mktemp("store") / "deep"
    monkeypatch.setenv("LOWTIDE_CACHE", str(folder))
    return folder


def refusal(source: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        read(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cifar(folder: Path, names: bool = True) -> dict[str, np.ndarray]:
    """Write `cifar-100-binary` with 6 and 4 images; give their records."""
    random = np.random.default_rng(0)
    folder.mkdir()
    records = {}
    for name, labels in (("train", (0, 1, 99, 99, 5, 1)), ("test", (99, 0, 1, 5))):
        data = random.integers(0, 256, (len(labels), 3074), dtype=np.uint8)
        data[:, 0], data[:, 1] = 7, labels
        data.tofile(folder / f"{name}.bin")
        records[name] = data
    if names:
        text = "".join(f"class_{n}\n" for n in range(100))
        (folder / "fine_label_names.txt").write_text(text)
    return records


def test_cifar_100_binary(tmp_path, store):
    records = cifar(tmp_path / "cifar-100-binary")
    data = read(tmp_path / "cifar-100-binary", val_fraction=0)
    assert data.format == "CIFAR-100 binary" and len(data.classes) == 100
    for which, part in (("train", data.train), ("test", data.test)):
        assert [label for _, label in part] == records[which][:, 1].tolist()
        for sample, record in zip(part, records[which], strict=True):
            pixels = np.asarray(decode(sample.path))
            # Red, green, blue planes, each in rows from the top.
            for y, x, c in ((0, 0, 0), (0, 1, 0), (1, 0, 1), (31, 30, 2)):
                assert pixels[y, x, c] == record[2 + 1024 * c + 32 * y + x]
    assert data.classes[data.train[2].label] == "class_99"
    assert data.root.parent == store
    assert data.notes[:4] == (
        f"images of {tmp_path}/cifar-100-binary written to {data.root}",
        "CIFAR-100 should have 100 classes, found 4",
        "CIFAR-100 should have 50000 images in train, found 6",
        "CIFAR-100 should have 10000 images in test, found 4",
    )
    written = data.train[0].path.stat().st_mtime_ns
    assert read(tmp_path / "cifar-100-binary", val_fraction=0) == data
    assert data.train[0].path.stat().st_mtime_ns == written
    assert [child.name for child in store.iterdir()] == [data.root.name]


def test_cifar_without_names_and_changed_bytes_lie_elsewhere(tmp_path):
    records = cifar(tmp_path / "a", names=False)
    first = read(tmp_path / "a")
    assert first.classes[:3] == ("0", "1", "2")
    records["train"][0, 5] ^= 1
    records["train"].tofile(tmp_path / "a/train.bin")
    assert read(tmp_path / "a").root != first.root


def test_cifar_that_cannot_work(tmp_path):
    cifar(tmp_path / "a")
    (tmp_path / "a/test.bin").write_bytes(b"\0" * 3073)
    assert refusal(tmp_path / "a").endswith(
        "test.bin: 3073 bytes are no whole number of CIFAR-100 records of 3074 bytes"
    )
    (tmp_path / "a/test.bin").write_bytes(b"\x64" * 3074)
    assert refusal(tmp_path / "a").endswith("record 0 has class 100, expected 0 to 99")
    (tmp_path / "a/fine_label_names.txt").write_text("one\n")
    (tmp_path / "a/test.bin").write_bytes(b"\0" * 3074)
    assert refusal(tmp_path / "a").endswith("expected 100 class names, got 1")
    assert refusal(tmp_path).endswith(f"did you mean {tmp_path}/a?")


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize(
    "names", [("train", "test", "meta"), ("data_batch_1", "test_batch", "batches.meta")]
)
def test_cifar_pickles_are_not_opened(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    assert refusal(tmp_path) == (
        f"{tmp_path} holds Python pickles, which can run any code when they are opened: expected "
        "the binary version (cifar-100-binary.tar.gz: train.bin, test.bin)"
    )


def test_a_store_that_breaks_off_leaves_nothing(store):
    def broken():
        yield Picture(b"1", ".png", "0")
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="luck"):
        keep("set", {"train": broken()}, ("a",))
    assert list(store.iterdir()) == []


def test_of_two_writers_at_once_the_first_to_finish_counts(store):
    def slow():
        yield Picture(b"slow", ".png", "0")
        keep("set", {"train": [Picture(b"fast", ".png", "0")]}, None)

    folder = keep("set", {"train": slow()}, None)
    assert (folder / "images/train/000000.png").read_bytes() == b"fast"
    assert [child.name for child in store.iterdir()] == ["set"]


def test_what_is_kept_is_not_made_again(store):
    def untouched():
        yield pytest.fail("made again")

    folder = keep("set", {"train": [Picture(b"1", ".png", "0")]}, None)
    assert keep("set", {"train": untouched()}, None) == folder


def test_a_store_that_cannot_be_written_says_so(store, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOWTIDE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set LOWTIDE_CACHE to a folder that can be written"):
        keep("set", {"train": []}, ("a",))


def test_class_names_stay_one_line_each(store):
    folder = keep("set", {"train": []}, ("a\nb", " c\u2028 d "))
    assert (folder / "classes.txt").read_text() == "a b\nc d\n"


# Hub


@pytest.fixture
def datasets():
    """The library, without its progress bars."""
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    return library


def pictures(count: int, seed: int) -> list[bytes]:
    random = np.random.default_rng(seed)
    found = []
    for n in range(count):
        file = io.BytesIO()
        image = Image.fromarray(random.integers(0, 256, (9, 8, 3), dtype=np.uint8))
        image.save(file, "JPEG" if n % 2 else "PNG")
        found.append(file.getvalue())
    return found


def hub(datasets, folder: Path, labels: dict[str, list], feature, **more) -> dict[str, list[bytes]]:
    """Save a data set as the library does; give its encoded images."""
    features = {"img": datasets.Image(), "label": feature, **{k: v[0] for k, v in more.items()}}
    encoded = {which: pictures(len(rows), n) for n, (which, rows) in enumerate(labels.items())}
    parts = {
        which: datasets.Dataset.from_dict(
            {
                "img": [{"bytes": data, "path": None} for data in encoded[which]],
                "label": rows,
                **{k: v[1][: len(rows)] for k, v in more.items()},
            },
            features=datasets.Features(features),
        )
        for which, rows in labels.items()
    }
    datasets.DatasetDict(parts).save_to_disk(folder)
    return encoded


def test_a_hub_data_set_on_disk(datasets, tmp_path, store):
    names = datasets.ClassLabel(names=["tabby cat", "../dog", "unused"])
    labels = {"train": [1, 0, 1], "validation": [0], "test": [1, 0], "extra": [0]}
    encoded = hub(datasets, tmp_path / "pets", labels, names)
    data = read(f"hf:{tmp_path}/pets")
    assert data.classes == ("tabby cat", "../dog", "unused")
    assert data.format == f"hub (hf:{tmp_path}/pets)"
    for which, key in (("train", "train"), ("val", "validation"), ("test", "test")):
        samples = getattr(data, which)
        assert [label for _, label in samples] == labels[key]
        assert [path.read_bytes() for path, _ in samples] == encoded[key]
    assert [path.suffix for path, _ in data.train] == [".png", ".jpeg", ".png"]
    assert data.notes == (
        f"images of hf:{tmp_path}/pets written to {data.root}",
        "ignored extra",
    )
    assert read(Path(f"hf:{tmp_path}/pets")) == data


def test_hub_labels_as_names_and_a_test_split_without_labels(datasets, tmp_path):
    text = {"train": ["golden retriever", "cat", "cat"]}
    hub(datasets, tmp_path / "text", text, datasets.Value("string"))
    data = read(f"hf:{tmp_path}/text", val_fraction=0)
    assert data.classes == ("cat", "golden retriever")
    assert [label for _, label in data.train] == [1, 0, 0]
    labels = {"train": [0, 1, 1], "test": [-1, -1]}
    hub(datasets, tmp_path / "hidden", labels, datasets.ClassLabel(names=["a", "b"]))
    data = read(f"hf:{tmp_path}/hidden", val_fraction=0)
    assert (len(data.train), data.test) == (3, ()) and "ignored test" in data.notes


def test_a_hub_data_set_without_a_name(datasets):
    assert refusal("hf:") == "'hf:' names no data set: give hf:org/name"


def test_hub_columns_that_are_not_clear(datasets, tmp_path):
    names = datasets.ClassLabel(names=["a", "b"])
    hub(datasets, tmp_path / "two", {"train": [0, 1]}, names, coarse=(names, [1, 0]))
    source = f"hf:{tmp_path}/two"
    assert refusal(source) == (
        f"{source}: 2 label columns; its columns are img, label, coarse: name the label, such as "
        "hf:NAME:label"
    )
    assert [label for _, label in read(f"{source}:coarse", val_fraction=0).train] == [1, 0]
    assert "no column 'fine'; its columns are img, label, coarse" in refusal(f"{source}:fine")
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "text")
    assert "0 image columns; its columns are text" in refusal(f"hf:{tmp_path}/text")


def test_a_hub_data_set_that_cannot_be_loaded(datasets, tmp_path):
    assert refusal(f"hf:{tmp_path}/nowhere").startswith(f"cannot load hf:{tmp_path}/nowhere: ")


def test_the_hub_without_its_extra_is_refused_in_one_line(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    assert (
        refusal("hf:org/name")
        == 'this command or option needs datasets: pip install "lowtide[hub]"'
    )


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LOWTIDE_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match="set LOWTIDE_CACHE to a folder"):
        store_folder()

"""CIFAR-100 in its binary version (Krizhevsky 2009); never its Python pickles."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import InputError
from ..listing import Format, Listing
from ..store import Picture, keep
from ..tasks import Task
from ..tree import read_text
from .lists import read_lists

CIFAR100 = Task("CIFAR-100", 100, {"train": 50000, "test": 10000})
FILES = {"train": "train.bin", "test": "test.bin"}
RECORD = 2 + 3 * 32 * 32
"""Bytes per image: coarse class, fine class, 32 x 32 red, green, blue."""
_PICKLES = ({"train", "test", "meta"}, {"data_batch_1", "test_batch", "batches.meta"})


def is_cifar(folder: Path) -> bool:
    """Tell whether a folder is CIFAR, in the binary version or as pickles.

    Args:
        folder: Any path.

    Returns:
        Whether it has the files of either.
    """
    return _has(folder, set(FILES.values())) or any(_has(folder, names) for names in _PICKLES)


def read_cifar(folder: Path) -> Listing:
    """Read `train.bin` and `test.bin`, labelled by fine classes.

    The images are written once as BMP files, which are lossless and of the same bytes on every
    system.

    Args:
        folder: `cifar-100-binary`, as unpacked.

    Returns:
        The entries of train and test.

    Raises:
        InputError: These are pickles, or a file is not of this layout.
    """
    if not _has(folder, set(FILES.values())):
        raise InputError(
            f"{folder} holds Python pickles, which can run any code when they are opened: expected "
            "the binary version (cifar-100-binary.tar.gz: train.bin, test.bin)"
        )
    raw = {which: _records(folder / name) for which, name in FILES.items()}
    names = folder / "fine_label_names.txt"
    classes = read_text(names).split() if names.is_file() else [str(n) for n in range(100)]
    if len(set(classes)) != 100:
        raise InputError(f"{names}: expected 100 class names, got {len(set(classes))}")
    digest = hashlib.sha256("\n".join(classes).encode())
    for records in raw.values():
        digest.update(records.tobytes())
    kept = keep(
        f"cifar100-{digest.hexdigest()[:16]}",
        {which: _pictures(records) for which, records in raw.items()},
        classes,
    )
    notes = (f"images of {folder} written to {kept}",)
    listing = read_lists(kept)
    return dataclasses.replace(listing, format="CIFAR-100 binary", notes=notes, task=CIFAR100)


def _has(folder: Path, names: set[str]) -> bool:
    return all((folder / name).is_file() for name in names)


def _records(path: Path) -> np.ndarray:
    data = np.fromfile(path, dtype=np.uint8)
    if not data.size or data.size % RECORD:
        raise InputError(
            f"{path}: {data.size} bytes are no whole number of CIFAR-100 records of {RECORD} bytes"
        )
    records = data.reshape(-1, RECORD)
    wrong = np.flatnonzero(records[:, 1] > 99)
    if wrong.size:
        raise InputError(
            f"{path}: record {wrong[0]} has class {records[wrong[0], 1]}, expected 0 to 99"
        )
    return records


def _pictures(records: np.ndarray) -> Iterator[Picture]:
    for record in records:
        file = io.BytesIO()
        pixels = record[2:].reshape(3, 32, 32).transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "BMP")
        yield Picture(file.getvalue(), ".bmp", str(record[1]))


FORMAT = Format(is_cifar, read_cifar, rank=40, nested=is_cifar)

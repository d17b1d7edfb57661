"""NOAH's few-shot lists, of fine-grained sets and of ImageNet with its shifted test sets."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from ...errors import InputError
from ..fgvc import FEW_SHOT
from ..labels import name_labels
from ..listing import Entry, Format, Listing, place
from ..tasks import Task, find
from ..tree import names
from .lists import read_lines

SHIFTED: tuple[Task, ...] = (
    Task("imagenet", 1000, {"val": 50000}),
    Task("imagenetv2", 1000, {"val": 10000}),
    Task("imagenet-sketch", 1000, {"val": 50889}),
    Task("imagenet-adversarial", 200, {"val": 7500}, ("imagenet_a",)),
    Task("imagenet-rendition", 200, {"val": 30000}, ("imagenet_r",)),
)
"""Domain generalisation: train on 16 images per class of the first, test on each."""

_META = re.compile(
    r"(?P<role>train|val|test)_meta\.list(\.num_shot_(?P<shots>\d+)\.seed_(?P<seed>\d+))?"
)


def is_meta(path: Path) -> bool:
    """Tell whether a path is one of these lists.

    Args:
        path: Any path.

    Returns:
        Whether it is a file such as `train_meta.list.num_shot_4.seed_1` or `val_meta.list`.
    """
    return bool(_META.fullmatch(path.name)) and path.is_file()


def metas_in(folder: Path) -> list[Path]:
    """Find these lists in a folder or in its `annotations`.

    Args:
        folder: Any path.

    Returns:
        The lists, sorted by name.
    """
    homes = [home for home in (folder / "annotations", folder) if home.is_dir()]
    found = ([home / name for name in names(home) if _META.fullmatch(name)] for home in homes)
    return next((paths for paths in found if paths), [])


def read_metas(folder: Path) -> Listing:
    """Read a set that has at most one list for train.

    Args:
        folder: The set's folder, or its `annotations`.

    Returns:
        The entries of each role that has a list.

    Raises:
        InputError: There are lists for several numbers of shots or seeds.
    """
    found = metas_in(folder)
    train = [path for path in found if _role(path) == "train"]
    if len(train) > 1:
        raise InputError(
            f"{folder} has {len(train)} lists for train, one for each number of shots and seed: "
            f"name the one to use, such as {train[0]}"
        )
    return read_meta(train[0]) if train else _listing({_role(path): path for path in found})


def read_meta(path: Path) -> Listing:
    """Read one list, with those for val and test beside it if it is for training.

    Args:
        path: Such as `oxford-pets/annotations/train_meta.list.num_shot_4.seed_1`.

    Returns:
        The entries of each role. Identical lines count once (the released 1-shot lists of
        oxford-pets hold each line twice).
    """
    beside = {which: path.with_name(f"{which}_meta.list") for which in ("val", "test")}
    chosen = {_role(path): path}
    if _role(path) == "train":
        chosen |= {which: other for which, other in beside.items() if other.is_file()}
    return _listing(chosen)


def _role(path: Path) -> str:
    match = _META.fullmatch(path.name)
    return match["role"] if match else ""


def _listing(chosen: dict[str, Path]) -> Listing:
    first = next(iter(chosen.values()))
    home = first.parent.parent if first.parent.name == "annotations" else first.parent
    read, notes = {}, []
    for which, path in chosen.items():
        lines = read_lines(path)
        once: dict[tuple[Path, str], Entry] = {}
        for entry in lines:
            once.setdefault((entry.path, entry.label), entry)
        read[which] = list(once.values())
        if len(lines) > len(once):
            notes.append(f"{path.name}: {len(lines) - len(read[which])} repeated lines dropped")
    entries = place([entry for part in read.values() for entry in part], _roots(home))
    named = iter(name_labels(entries, None))
    splits: dict[str, list[Entry]] = {w: [next(named) for _ in part] for w, part in read.items()}
    kind = f"few-shot lists ({', '.join(path.name for path in chosen.values())})"
    return Listing(kind, home, splits, notes=tuple(notes), task=_task(home.name, first))


def _roots(home: Path) -> list[Path]:
    """NOAH keeps images in `images/` (those of cars beside it), DTL in a tree of their own."""
    roots = [home / "images", home]
    if home.parent.name == "few-shot_split":
        there = home.parent.parent / home.name
        roots += [there, there / "images"]
    return roots


def _task(name: str, path: Path) -> Task | None:
    task, match = find((*FEW_SHOT, *SHIFTED), name), _META.fullmatch(path.name)
    if task is None or match is None or match["shots"] is None:
        return task
    sizes = {"train": int(match["shots"]) * task.classes, **task.sizes}
    return dataclasses.replace(task, sizes=sizes)


FORMAT = Format(
    claims=lambda path: is_meta(path) or metas_in(path),
    read=lambda path: read_meta(path) if path.is_file() else read_metas(path),
    rank=10,
    nested=metas_in,
)

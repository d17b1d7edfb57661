"""Lists of images and classes: VTAB-1k's, FGVC's JSON, DomainNet's, plain ones, or a single one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError
from .. import fgvc, vtab
from ..labels import name_labels, read_classes
from ..listing import SPLITS, Entry, Format, Listing, place, role
from ..tasks import Task, find
from ..tree import is_image, names, read_text
from .json_list import read_pairs

_LIST = re.compile(
    r"((?P<domain>clipart|infograph|painting|quickdraw|real|sketch)_)?"
    r"(?P<role>train(ing)?|val(id(ation)?)?|test(ing)?)\d*(?P<all>val\d*)?\.(?P<kind>txt|json)",
    re.IGNORECASE,
)
_VTAB = {"train800.txt", "train800val200.txt"}


def is_list(path: Path) -> bool:
    """Tell whether a path is a list.

    Args:
        path: Any path.

    Returns:
        Whether it is a `.txt` or `.json` file.
    """
    return path.suffix.lower() in {".txt", ".json"} and path.is_file()


def lists_in(folder: Path) -> list[Path]:
    """Find the lists of a folder.

    Args:
        folder: Any path.

    Returns:
        Files named as lists are: `train800.txt`, `val.txt`, `train800val200.txt`, `test.json`,
        `real_train.txt`. JSON beside a `train` folder is something else: that folder counts.
    """
    if not folder.is_dir():
        return []
    found = names(folder)
    declared = any(role(name) == "train" and (folder / name).is_dir() for name in found)
    lists = [folder / name for name in found if _LIST.fullmatch(name)]
    lists = [path for path in lists if path.is_file()]
    return [path for path in lists if path.suffix.lower() == ".txt" or not declared]


def read_lists(folder: Path) -> Listing:
    """Read the lists of a folder: train and val apart where both are there, and test.

    VTAB-1k (Zhai et al. 2019, in the list format of NOAH and SSF) gives `train800.txt`,
    `val200.txt` and their union `train800val200.txt`, VPT's FGVC `train.json`, `val.json` and
    perhaps `trainval.json`: the first two are taken, to select on val. For the final protocol
    (train on both, no selection) name the union itself.

    Args:
        folder: A folder with at least one list.

    Returns:
        The entries of each role that has a list.

    Raises:
        InputError: There are several lists for one role.
    """
    return _listing(folder, _lists_of(folder))


def _lists_of(folder: Path) -> dict[str, Path]:
    """Choose the list of each role."""
    found = lists_in(folder)
    unions = [path for path in found if _is_union(path)]
    parts = [path for path in found if not _is_union(path)]
    roles = {which: [path for path in parts if _role(path) == which] for which in SPLITS}
    if not roles["train"] and unions:
        roles["train"], roles["val"] = unions, []
    for which, paths in roles.items():
        if len(paths) > 1:
            several = " and ".join(path.name for path in paths)
            raise InputError(f"{folder}: {several} are all lists for {which}; name the one to use")
    return {which: paths[0] for which, paths in roles.items() if paths}


def read_list(path: Path) -> Listing:
    """Read one list, with its siblings if its name says it is for training.

    Args:
        path: A `.txt` file of lines `path label`, or a `.json` file `{path: label}`.

    Returns:
        The entries of the list as train, next to those of val and test lists beside it. A union
        of train and val (`train800val200.txt`) has no val: its images are trained on. A list for
        val or test stands alone. A list of any other name is all there is, to be split.
    """
    listing = _listing(path.parent, _beside(path))
    if _is_union(path):
        listing.splits["val"] = []
    return listing


def read_rows(path: Path) -> Listing:
    """Read lists without asking what stands behind a path: one column, `label`.

    Args:
        path: A list, or a folder of lists.

    Returns:
        Entries with their label as a value.
    """
    folder = path.parent if path.is_file() else path
    chosen = _beside(path) if path.is_file() else _lists_of(path)
    splits = {
        which: [entry._replace(values={"label": entry.label}) for entry in part]
        for which, part in _placed(chosen).items()
    }
    if _is_union(path):
        splits["val"] = []
    return Listing(_kind(chosen), folder, splits)


def _beside(path: Path) -> dict[str, Path]:
    """Choose a list and its siblings, by role."""
    which = _role(path)
    if which != "train":
        return {which or "all": path}
    chosen = {"train": path}
    for which in ("test",) if _is_union(path) else ("val", "test"):
        siblings = [p for p in lists_in(path.parent) if _role(p) == which and _akin(p, path)]
        if len(siblings) == 1:
            chosen[which] = siblings[0]
    return chosen


def read_lines(path: Path) -> list[Entry]:
    """Read lines `path label`, in order.

    Args:
        path: The list.

    Returns:
        Entries with paths and labels as written.

    Raises:
        InputError: A line does not parse, or there is none.
    """
    entries = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        # The last blank: file names may hold blanks themselves (ImageNet-A), labels do not.
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        if not name or is_image(Path(label)):
            raise InputError(f"{path}:{number}: expected `path label`, got {line.strip()!r}")
        file = Path(name.strip().replace("\\", "/"))
        entries.append(Entry(file, label, f"{path.name}:{number}"))
    if not entries:
        raise InputError(f"{path} is empty: expected lines `path label`")
    return entries


def _role(path: Path) -> str | None:
    match = _LIST.fullmatch(path.name)
    return role(match["role"]) if match else None


def _is_union(path: Path) -> bool:
    match = _LIST.fullmatch(path.name)
    return bool(match and match["all"])


def _akin(one: Path, other: Path) -> bool:
    a, b = _LIST.fullmatch(one.name), _LIST.fullmatch(other.name)
    return bool(a and b and (a["domain"], a["kind"]) == (b["domain"], b["kind"]))


def _listing(folder: Path, chosen: dict[str, Path]) -> Listing:
    paths, placed = list(chosen.values()), _placed(chosen)
    # CUB and NABirds come with a classes.txt of their own, which is in another format.
    classes = None if _is_json(paths[0]) else read_classes(folder)
    named = iter(name_labels([entry for part in placed.values() for entry in part], classes))
    splits = {which: [next(named) for _ in part] for which, part in placed.items()}
    return Listing(_kind(chosen), folder, splits, classes, task=_task(folder, paths))


def _placed(chosen: dict[str, Path]) -> dict[str, list[Entry]]:
    """Read lists, labels as written and paths whole."""
    first = next(iter(chosen.values()))
    read = {w: read_pairs(p) if _is_json(first) else read_lines(p) for w, p in chosen.items()}
    entries = iter(place([entry for part in read.values() for entry in part], _roots(first)))
    return {which: [next(entries) for _ in part] for which, part in read.items()}


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _kind(chosen: dict[str, Path]) -> str:
    paths = list(chosen.values())
    kind = "JSON lists" if _is_json(paths[0]) else "lists"
    return f"{kind} ({', '.join(path.name for path in paths)})"


def _roots(path: Path) -> list[Path]:
    """Where a list's paths may be relative to, most usual first."""
    folder, match = path.parent, _LIST.fullmatch(path.name)
    if path.suffix.lower() == ".json":
        return [folder, folder / "images", folder / "Images"]
    return [folder, folder.parent] if match and match["domain"] else [folder]


def _task(folder: Path, paths: Sequence[Path]) -> Task | None:
    if _VTAB & {path.name for path in paths}:
        return find(vtab.TASKS, folder.name)
    return find(fgvc.FGVC, folder.name) if paths[0].suffix.lower() == ".json" else None


FORMAT = Format(
    claims=lambda path: is_list(path) or lists_in(path),
    read=lambda path: read_list(path) if path.is_file() else read_lists(path),
    rank=20,
    nested=lists_in,
    file="a list (.txt, .json, *_meta.list)",
    rows=read_rows,
)

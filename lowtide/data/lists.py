"""Text lists of `path label`: VTAB-1k's own names, plain ones, or a single list."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import InputError
from .listing import (
    SPLITS,
    Entry,
    Listing,
    children,
    is_image,
    name_labels,
    read_classes,
    read_text,
    role,
)

_LIST = re.compile(
    r"(?P<role>train(ing)?|val(id(ation)?)?|test(ing)?)\d*(?P<all>val\d*)?\.txt", re.IGNORECASE
)


def lists_in(folder: Path) -> list[Path]:
    """Find the lists of a folder.

    Args:
        folder: An existing folder.

    Returns:
        Files named as lists are: `train800.txt`, `val.txt`, `train800val200.txt`, `test.txt`.
    """
    return [path for path in children(folder) if path.is_file() and _LIST.fullmatch(path.name)]


def read_lists(folder: Path) -> Listing:
    """Read the lists of a folder: train and val apart where both are there, and test.

    VTAB-1k (Zhai et al. 2019, in the list format of NOAH and SSF) gives `train800.txt`,
    `val200.txt` and their union `train800val200.txt`: the first two are taken, to select on val.
    For its final protocol (train on all 1000, no selection) name the union itself.

    Args:
        folder: A folder with at least one list for training.

    Returns:
        The entries of each role that has a list.

    Raises:
        InputError: No list for training, or several for one role.
    """
    found = lists_in(folder)
    unions = [path for path in found if _is_union(path)]
    parts = [path for path in found if not _is_union(path)]
    roles = {which: [path for path in parts if _role(path) == which] for which in SPLITS}
    if not roles["train"] and unions:
        roles["train"], roles["val"] = unions, []
    for which, paths in roles.items():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise InputError(f"{folder}: {names} are all lists for {which}; name the one to use")
    if not roles["train"]:
        raise InputError(f"{folder}: found {found[0].name} but no list for training (train*.txt)")
    chosen = {which: paths[0] for which, paths in roles.items() if paths}
    return _listing(folder, chosen)


def read_list(path: Path) -> Listing:
    """Read one list, with its siblings if its name says it is for training.

    Args:
        path: A `.txt` file of lines `path label`.

    Returns:
        The entries of the list as train, next to those of val and test lists beside it. A union
        of train and val (`train800val200.txt`) has no val: its images are trained on. A list of
        any other name is all there is, to be split.

    Raises:
        InputError: The list is one for val or test.
    """
    match = _LIST.fullmatch(path.name)
    if not match:
        return _listing(path.parent, {"all": path})
    if _role(path) != "train":
        raise InputError(f"{path} is a list for {_role(path)}: name the list for training")
    chosen = {"train": path}
    for which in ("test",) if _is_union(path) else ("val", "test"):
        siblings = [p for p in lists_in(path.parent) if _role(p) == which]
        if len(siblings) == 1:
            chosen[which] = siblings[0]
    listing = _listing(path.parent, chosen)
    if _is_union(path):
        listing.splits["val"] = []
    return listing


def _role(path: Path) -> str | None:
    match = _LIST.fullmatch(path.name)
    return role(match["role"]) if match else None


def _is_union(path: Path) -> bool:
    match = _LIST.fullmatch(path.name)
    return bool(match and match["all"])


def _listing(folder: Path, chosen: dict[str, Path]) -> Listing:
    classes = read_classes(folder)
    read = {which: _parse(path) for which, path in chosen.items()}
    named = iter(name_labels([entry for part in read.values() for entry in part], classes))
    splits = {which: [next(named) for _ in part] for which, part in read.items()}
    names = ", ".join(path.name for path in chosen.values())
    return Listing(f"lists ({names})", folder, splits, classes)


def _parse(path: Path) -> list[Entry]:
    entries = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        # The last blank: file names may hold blanks themselves (ImageNet-A), labels do not.
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        if not name or is_image(Path(label)):
            raise InputError(f"{path}:{number}: expected `path label`, got {line.strip()!r}")
        file = path.parent / name.strip().replace("\\", "/")
        entries.append(Entry(file, label, f"{path.name}:{number}"))
    if not entries:
        raise InputError(f"{path} is empty: expected lines `path label`")
    return entries

"""Class folders below a folder for each of train, val and test."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ..listing import Format, Listing, role
from ..tree import children, names
from .class_folders import read_classes_of
from .lists import lists_in


def has_split_folders(folder: Path) -> bool:
    """Tell whether a folder declares its splits by folders.

    Args:
        folder: Any path.

    Returns:
        Whether it has a folder named as `train`, `val` or `test` are.
    """
    return folder.is_dir() and any(role(n) and (folder / n).is_dir() for n in names(folder))


def read_split_folders(root: Path) -> Listing:
    """Read `root/{train,val,test}/<class>/**/<image>`.

    Args:
        root: A folder with at least one of these folders in it.

    Returns:
        The entries of each role that has a folder.

    Raises:
        InputError: Two folders for one role, folders of other names and none for train, or a
            folder that does not hold class folders.
    """
    folders: dict[str, Path] = {}
    ignored: list[str] = []
    for child in children(root):
        which = role(child.name) if child.is_dir() else None
        if which is None:
            ignored.append(child.name)
        elif which in folders:
            raise InputError(f"{root}: both {folders[which].name} and {child.name} are {which}")
        else:
            folders[which] = child
    others = [name for name in ignored if (root / name).is_dir()]
    if "train" not in folders and others:  # more likely something else than a set without train
        there = ", ".join(child.name for child in children(root) if child.is_dir())
        above = f"; did you mean {root.parent}?" if lists_in(root.parent) else ""
        raise InputError(f"{root} has no train folder, only {there}{above}")
    splits, notes = {}, [f"ignored {', '.join(ignored)}"] if ignored else []
    for which, folder in folders.items():
        splits[which], more = read_classes_of(folder)
        notes += more
    return Listing("split folders", root, splits, notes=tuple(notes))


def _has_train(folder: Path) -> bool:
    return folder.is_dir() and any(
        role(name) == "train" and (folder / name).is_dir() for name in names(folder)
    )


FORMAT = Format(has_split_folders, read_split_folders, rank=60, nested=_has_train)

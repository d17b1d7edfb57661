"""Folders of class folders, declared as train / val / test or not."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from ..errors import InputError
from .listing import Entry, Listing, children, is_image, is_litter, names, role
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
        splits[which], more = _read_class_folders(folder)
        notes += more
    return Listing("split folders", root, splits, notes=tuple(notes))


def read_class_folders(root: Path) -> Listing:
    """Read `root/<class>/**/<image>`, no split declared.

    Args:
        root: A folder of class folders.

    Returns:
        All entries, under the key `all`.
    """
    entries, notes = _read_class_folders(root)
    return Listing("class folders", root, {"all": entries}, notes=tuple(notes))


def _read_class_folders(folder: Path) -> tuple[list[Entry], list[str]]:
    found = children(folder)
    classes = [child for child in found if child.is_dir()]
    loose = [child for child in found if child.is_file() and is_image(child)]
    if not classes and not loose:
        raise InputError(f"{folder} is empty: expected one sub-folder of images per class")
    if loose and loose[0].name.startswith("ILSVRC2012_val_"):
        raise InputError(
            f"{folder}: ImageNet's validation images lie flat, their classes in a list that counts "
            "them in another order than folder names do; expected them sorted into folders named "
            "by WordNet id (n01440764/...), as train is"
        )
    if loose:
        raise InputError(
            f"{folder}: {len(loose)} images lie outside any class folder (first: {loose[0].name}); "
            "expected one sub-folder of images per class"
        )
    entries, others = [], [child for child in found if child.is_file()]
    entered: set[str] = set()
    for child in classes:
        images, rest = _walk(child, entered)
        if not images:
            seen = ", ".join(sorted({path.suffix or path.name for path in rest})) or "nothing"
            raise InputError(f"class folder {child} has no images (it holds {seen})")
        entries += [Entry(path, child.name, str(child)) for path in images]
        others += rest
    return entries, _ignored(others)


def _ignored(others: list[Path]) -> list[str]:
    if not others:
        return []
    folders = [path for path in others if path.is_dir()]
    what = "files that are no images" + (" or folders seen before" if folders else "")
    kinds = Counter(path.suffix.lower() or "no suffix" for path in others if path not in folders)
    kinds |= Counter({"folders": len(folders)})
    said = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(5))
    return [f"ignored {len(others)} {what} ({said}), first {others[0]}"]


def _walk(folder: Path, entered: set[str]) -> tuple[list[Path], list[Path]]:
    """Find the images of a class, through links too, in no folder twice."""
    images: list[Path] = []
    others: list[Path] = []
    for parent, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:  # a link to where it has been, or to a folder above
            subfolders.clear()
            others.append(Path(parent))
            continue
        entered.add(real)
        subfolders[:] = sorted(name for name in subfolders if not is_litter(name))
        for name in sorted(files):
            if not is_litter(name):
                path = Path(parent, name)
                (images if is_image(path) else others).append(path)
    return images, others

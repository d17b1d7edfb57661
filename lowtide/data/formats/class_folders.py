"""Class folders, no split declared: the format of a folder that no other format claims."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from ...errors import InputError
from ..listing import LAST, Entry, Format, Listing
from ..tree import children, is_image, walk


def read_class_folders(root: Path) -> Listing:
    """Read `root/<class>/**/<image>`, no split declared.

    Args:
        root: A folder of class folders.

    Returns:
        All entries, under the key `all`.
    """
    entries, notes = read_classes_of(root)
    return Listing("class folders", root, {"all": entries}, notes=tuple(notes))


def read_classes_of(folder: Path) -> tuple[list[Entry], list[str]]:
    """Read `folder/<class>/**/<image>`, be it a whole source or one split of it.

    Args:
        folder: A folder of class folders.

    Returns:
        The entries, and what was ignored, in at most one sentence.

    Raises:
        InputError: It is empty, an image lies outside any class, or a class has none.
    """
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
        images, rest = walk(child, entered)
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


def _around(folder: Path) -> bool:
    """Tell whether a folder, the only one in its own, holds folders and no image."""
    if not folder.is_dir():
        return False
    inside = children(folder)
    if any(map(is_image, inside)) or not any(child.is_dir() for child in inside):
        return False
    siblings = (child for child in children(folder.parent) if child.is_dir())
    return len(list(islice(siblings, 2))) == 1


FORMAT = Format(Path.is_dir, read_class_folders, rank=LAST, nested=_around)

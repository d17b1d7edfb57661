"""Find COCO's files, the split of each, and the folders of their images."""

from __future__ import annotations

import re
from pathlib import Path

from ..listing import role
from ..tree import children
from .text import inside, sniff

KEYS = ("images", "annotations", "categories")
"""What every file of COCO holds lists under."""

_OTHERS = ("person_keypoints", "captions", "stuff", "panoptic", "image_info")
"""What COCO's other files begin with."""
_USUAL = re.compile(r"(instances_)?(train|val|valid|validation|test)\d*\.json", re.IGNORECASE)


def files_of(source: Path) -> list[Path]:
    """Find COCO's files: beside the images' folders, in `annotations/`, or in a split's folder.

    Args:
        source: A folder, or one file.

    Returns:
        Those of boxes and masks; others of COCO's only where there are none.
    """
    if source.is_file():
        return [source] if _is_coco(source) else []
    folders = [source, *(child for child in children(source) if child.is_dir())]
    found = []
    for folder in folders:
        annotations = folder.name.lower() in {"annotations", "annotation"}
        if folder == source or annotations or role(folder.name):
            found += [
                child
                for child in children(folder)
                if child.suffix.lower() == ".json"
                and (annotations and _USUAL.fullmatch(child.name) or _is_coco(child))
            ]
    main = [path for path in found if not path.name.startswith(_OTHERS)]
    return main or found


def _is_coco(path: Path) -> bool:
    """Tell by two of its keys: another JSON beside the data may have one of them."""
    return len(sniff(path, KEYS)) > 1 or bool(sniff(path, ("images",)) and _lists_files(path))


def _lists_files(path: Path) -> bool:
    with path.open("rb") as file:
        return b'"file_name"' in file.read(1 << 16)


def split_of(path: Path, source: Path) -> str:
    """Tell a file's role from its name, or else from its folder's.

    Args:
        path: The file.
        source: The folder of the data.

    Returns:
        `train`, `val`, `test`, or `all`.
    """
    words = re.findall(r"[a-z]+", path.stem.lower())
    roles = [found for word in words if (found := role(word))]
    if len(set(roles)) > 1 or "trainval" in words:
        return "train"
    if roles:
        return roles[0]
    return (path.parent != source and role(path.parent.name)) or "all"


def folder_of(path: Path, split: str, root: Path, name: object) -> Path:
    """Find the folder that holds the first image: the file's own, or one of the split's name.

    Args:
        path: The file.
        split: What it is for.
        root: The folder of the data.
        name: Of the first image, as written.

    Returns:
        The folder; where none has the image, one of the split's name or the root.
    """
    below = [child for child in children(root) if child.is_dir()]
    below += [deeper for child in below for deeper in children(child) if deeper.is_dir()]
    if split == "all":
        wanted = below
    else:
        mine = [folder for folder in below if role(folder.name.rstrip("0123456789")) == split]
        wanted = mine + [f for f in below if not role(f.name.rstrip("0123456789"))]
    candidates = [path.parent, root, *wanted]
    for folder in candidates:
        if inside(root, folder, name, f"{path.name} images").is_file():
            return folder
    return next((f for f in wanted if role(f.name.rstrip("0123456789"))), root)

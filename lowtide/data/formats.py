"""Recognise a source by what it holds, and read what it says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..paths import located
from .cifar import is_cifar, read_cifar
from .corruptions import corruptions_in, refuse_corruptions
from .csv_lists import is_table, read_csv
from .few_shot import is_meta, metas_in, read_meta, read_metas
from .folders import has_split_folders, read_class_folders, read_split_folders
from .hub import is_hub, read_hub
from .listing import Listing, children, hint, is_image, names, role
from .lists import is_list, lists_in, read_list, read_lists


class Reader(NamedTuple):
    """One format: whether a path is in it, and how to read it."""

    claims: Callable[[Path], object]
    read: Callable[[Path], Listing]


READERS: tuple[Reader, ...] = (
    Reader(is_table, read_csv),
    Reader(is_meta, read_meta),
    Reader(is_list, read_list),
    Reader(metas_in, read_metas),
    Reader(lists_in, read_lists),
    Reader(is_cifar, read_cifar),
    Reader(corruptions_in, refuse_corruptions),
    Reader(has_split_folders, read_split_folders),
)
"""The first that claims a path reads it. A folder that none claims holds class folders."""


def find(source: Path | str) -> Listing:
    """Read what a source says, without opening an image.

    Args:
        source: A folder, a file, or a name such as `hf:org/name`.

    Returns:
        What it lists.

    Raises:
        InputError: It does not exist, is in no known format, or is wrong in its format.
    """
    if is_hub(source):
        return read_hub(str(source))
    path = Path(os.path.abspath(located(source)))
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist{hint(path)}")
    for reader in READERS:
        if reader.claims(path):
            return reader.read(path)
    if not path.is_dir():
        raise InputError(
            f"{path} is a file: expected a folder, a list (.txt, .json, *_meta.list) or a CSV"
        )
    found = children(path)
    folders = [child for child in found if child.is_dir()]
    tables = [child for child in found if is_table(child)]
    meant = [child for child in folders if _holds_a_dataset(child, folders)] or tables
    if meant:
        raise InputError(f"{path} holds no class folders; did you mean {meant[0]}?")
    return read_class_folders(path)


def _holds_a_dataset(folder: Path, siblings: list[Path]) -> bool:
    if any(reader.claims(folder) for reader in READERS[:-1]):
        return True
    if any(role(name) == "train" and (folder / name).is_dir() for name in names(folder)):
        return True
    inside = children(folder) if len(siblings) == 1 else []
    return any(child.is_dir() for child in inside) and not any(map(is_image, inside))

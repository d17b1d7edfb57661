"""VPT's JSON lists: one object `{relative path: class id}` per split."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import InputError
from ..listing import Entry
from ..tree import read_text


def read_pairs(path: Path) -> list[Entry]:
    """Read one JSON list, in order.

    Args:
        path: The list; class ids are integers or strings.

    Returns:
        Entries with paths and labels as written.

    Raises:
        InputError: It is no such object, or an entry is no path with a class id.
    """
    text = read_text(path)
    try:
        # As pairs: a path given twice would otherwise silently count once.
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise InputError(f"{path}: expected one object {{path: class id}}")
    if not pairs:
        raise InputError(f"{path} is empty: expected one object {{path: class id}}")
    for name, label in pairs:
        if not name.strip() or isinstance(label, bool) or not isinstance(label, int | str):
            raise InputError(f"{path}: expected a path and a class id, got {name!r}: {label!r}")
    return [
        Entry(Path(name), str(label).strip(), f"{path.name} entry {number}")
        for number, (name, label) in enumerate(pairs, start=1)
    ]

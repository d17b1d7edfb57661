"""CSV files with a column of paths and a column of labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import InputError
from ..columns import NAMED
from ..labels import name_labels, read_classes
from ..listing import SPLITS, Entry, Format, Listing, role
from ..tree import read_text

PATH_COLUMNS = ("path", "image", "file", "filename")
LABEL_COLUMNS = ("label", "class")
SPLIT_COLUMN = "split"
OTHER_TASKS = "; --task multilabel or regress learns from columns of other names"
KNOWN = {*PATH_COLUMNS, *LABEL_COLUMNS, *NAMED, SPLIT_COLUMN}
"""Names that are read in any case; other columns keep theirs."""


def is_table(path: Path) -> bool:
    """Tell whether a path is a table.

    Args:
        path: Any path.

    Returns:
        Whether it is a `.csv` or `.tsv` file.
    """
    return path.suffix.lower() in {".csv", ".tsv"} and path.is_file()


def read_csv(path: Path) -> Listing:
    """Read a CSV: `path` (or image, file, filename), `label` (or class), perhaps `split`.

    Commas, semicolons or tabs between the columns; paths are relative to the CSV. Where a
    `classes.txt` lies beside it, integer labels are indices into that.

    Args:
        path: The CSV.

    Returns:
        The entries by role if there is a split column, else all of them.

    Raises:
        InputError: A column is missing, or a row lacks a value or names an unknown split.
    """
    columns, rows = _parse(path)
    _column(path, columns, PATH_COLUMNS)
    label_column = _column(path, columns, LABEL_COLUMNS, OTHER_TASKS)
    entries, roles = [], []
    for which, entry in _entries(path, columns, rows):
        label = entry.values[label_column].strip()
        if not label:
            raise InputError(f"{path.parent / entry.where}: expected a path and a label")
        entries.append(Entry(entry.path, label, entry.where))
        roles.append(which)
    classes = read_classes(path.parent)
    return _listing(path, zip(roles, name_labels(entries, classes), strict=True), classes)


def read_rows(path: Path) -> Listing:
    """Read a CSV without asking what its columns mean: `path`, perhaps `split`, and others.

    Args:
        path: The CSV.

    Returns:
        Entries with the values of the other columns, by role.

    Raises:
        InputError: The column of paths is missing, or a row lacks one or names an unknown split.
    """
    columns, rows = _parse(path)
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise InputError(f"{path}: column {twice[0]} is there twice")
    return _listing(path, _entries(path, columns, rows))


def _listing(
    path: Path, entries: Iterable[tuple[str, Entry]], classes: tuple[str, ...] | None = None
) -> Listing:
    splits: dict[str, list[Entry]] = {}
    for which, entry in entries:
        splits.setdefault(which, []).append(entry)
    if not splits:
        raise InputError(f"{path} has no rows below its header")
    return Listing(f"csv ({path.name})", path.parent, splits, classes)


def _entries(
    path: Path, columns: list[str], rows: list[tuple[int, dict[str, str]]]
) -> Iterator[tuple[str, Entry]]:
    """Give role and image of each row, with the values of its other columns."""
    path_column = _column(path, columns, PATH_COLUMNS)
    for line, row in rows:
        file = row[path_column].strip().replace("\\", "/")
        if not file:
            raise InputError(f"{path}:{line}: expected a path and a label")
        which = _role(row[SPLIT_COLUMN], path, line) if SPLIT_COLUMN in columns else "all"
        others = {c: row[c] for c in columns if c not in {path_column, SPLIT_COLUMN}}
        yield which, Entry(path.parent / file, "", f"{path.name}:{line}", others)


def _parse(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    text = read_text(path)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, restval="", strict=True
    )
    try:
        heads = [name.strip() for name in rows.fieldnames or ()]
        names = [h.lower() if h.lower() in KNOWN else h for h in heads]
        rows.fieldnames = names
        found = [(rows.line_num, row) for row in rows]
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not a CSV row: {error}") from error
    if twice := [name for name in names if name in KNOWN and names.count(name) > 1]:
        raise InputError(f"{path}: column {twice[0]} is there twice")
    return names, found


def _column(path: Path, found: list[str], accepted: tuple[str, ...], hint: str = "") -> str:
    for name in accepted:
        if name in found:
            return name
    raise InputError(
        f"{path}: no column {' or '.join(accepted)}; its columns are"
        f" {', '.join(found) or 'none'}{hint}"
    )


def _role(text: str, path: Path, line: int) -> str:
    which = role(text)
    if which is None:
        known = ", ".join(name for names in SPLITS.values() for name in names)
        raise InputError(f"{path}:{line}: unknown split {text!r}, expected {known}")
    return which


FORMAT = Format(is_table, read_csv, rank=30, nested=is_table, file="a CSV", rows=read_rows)

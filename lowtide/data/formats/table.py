"""CSV files with a column of paths and a column of labels."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ...errors import InputError
from ..labels import name_labels, read_classes
from ..listing import SPLITS, Entry, Format, Listing, role
from ..tree import read_text

PATH_COLUMNS = ("path", "image", "file", "filename")
LABEL_COLUMNS = ("label", "class")
SPLIT_COLUMN = "split"


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
    path_column = _column(path, columns, PATH_COLUMNS)
    label_column = _column(path, columns, LABEL_COLUMNS)
    entries, roles = [], []
    for line, row in rows:
        file, label = row[path_column].strip(), row[label_column].strip()
        if not file or not label:
            raise InputError(f"{path}:{line}: expected a path and a label")
        file = file.replace("\\", "/")
        entries.append(Entry(path.parent / file, label, f"{path.name}:{line}"))
        roles.append(_role(row[SPLIT_COLUMN], path, line) if SPLIT_COLUMN in columns else "all")
    if not entries:
        raise InputError(f"{path} has no rows below its header")
    classes = read_classes(path.parent)
    splits: dict[str, list[Entry]] = {which: [] for which in roles}
    for which, entry in zip(roles, name_labels(entries, classes), strict=True):
        splits[which].append(entry)
    return Listing(f"csv ({path.name})", path.parent, splits, classes)


def _parse(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    text = read_text(path)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, restval="", strict=True
    )
    try:
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        return list(rows.fieldnames), [(rows.line_num, row) for row in rows]
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not a CSV row: {error}") from error


def _column(path: Path, found: list[str], accepted: tuple[str, ...]) -> str:
    for name in accepted:
        if name in found:
            return name
    raise InputError(
        f"{path}: no column {' or '.join(accepted)}; its columns are {', '.join(found) or 'none'}"
    )


def _role(text: str, path: Path, line: int) -> str:
    which = role(text)
    if which is None:
        known = ", ".join(name for names in SPLITS.values() for name in names)
        raise InputError(f"{path}:{line}: unknown split {text!r}, expected {known}")
    return which


FORMAT = Format(is_table, read_csv, rank=30, nested=is_table, file="a CSV")

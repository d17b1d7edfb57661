"""Cells and columns of tables, for every format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One field of a table.

    Attributes:
        text: What is read.
        value: What it is sorted by; None where there is nothing.
        note: What is said about it on demand.
        best: Whether it is the best of its column.
        close: Whether it cannot be told from the best.
        shade: Depth of its colour in a heat map, 0 to 9; -1 for none.
    """

    text: str = ""
    value: float | str | None = None
    note: str = ""
    best: bool = False
    close: bool = False
    shade: int = -1


@dataclass(frozen=True)
class Column:
    """The head of a column.

    Attributes:
        name: What stands in it.
        numeric: Whether it holds numbers.
        group: What it shares with its neighbours.
        code: Whether it holds commands.
    """

    name: str
    numeric: bool = True
    group: str = ""
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Its caption.
        columns: Their heads.
        rows: Their cells, the first of which names the row.
        notes: What is said below it.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def number(value: float | None, form: str, unit: float | None = None) -> Cell:
    """Write a number.

    Args:
        value: The number.
        form: How, as for `format`.
        unit: What it is counted in.

    Returns:
        Its cell; an empty one for None.
    """
    if value is None:
        return Cell()
    return Cell(format(value / unit if unit else value, form), value)


def text(text: str, note: str = "") -> Cell:
    """Write words.

    Args:
        text: The words.
        note: What is said about them on demand.

    Returns:
        Their cell.
    """
    return Cell(text, text, note)

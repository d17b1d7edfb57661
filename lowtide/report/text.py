"""The report as Markdown, and its rows as CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence

from ..errors import inert, printable
from .cells import Cell, Table
from .compare import warnings
from .dense import class_tables, precision_table
from .paired import paired_table
from .provenance import command, provenance_table
from .rows import Entry
from .tables import boards, overview_table, result_table, scores_table
from .words import MEMORY, REPEAT, SIGNIFICANCE, heading

BAR = r"\|"
"""What a table takes for a bar, in code too."""


def markdown(title: str, entries: Sequence[Entry]) -> str:
    """Write tables as Markdown.

    Args:
        title: Of the page.
        entries: All that is reported.

    Returns:
        Tables by backbone and data set, and where every number is from.
    """
    blocks = [f"# {_escaped(title)}", SIGNIFICANCE, MEMORY]
    for model, played in boards(entries).items():
        blocks.append(f"## {_escaped(model or 'No finished row')}")
        if len(played) > 1:
            blocks += ["### All data sets", _table(overview_table(played))]
        for board in played:
            blocks.append(f"### {_escaped(heading(board))}")
            blocks += [f"Warning: {_escaped(w)}." for w in warnings(board.entries)]
            table = result_table(board)
            blocks += [_table(table), *map(_escaped, table.notes)]
            more = (scores_table(board), paired_table(board), precision_table(board))
            for found in filter(None, (*more, *class_tables(board))):
                if found.rows:
                    blocks += [f"{_escaped(found.title)}:", _table(found)]
                blocks += map(_escaped, found.notes)
    blocks += ["## Where the numbers are from", REPEAT, _table(provenance_table(entries))]
    return "\n\n".join(blocks) + "\n"


def _table(table: Table) -> str:
    heads = [f"{c.group}: {c.name}" if c.group else c.name for c in table.columns]
    lines = [
        [_escaped(head) for head in heads],
        ["---:" if c.numeric else "---" for c in table.columns],
        *(
            [_cell(cell, column.code) for cell, column in zip(row, table.columns, strict=True)]
            for row in table.rows
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell, code: bool) -> str:
    if code:
        text = printable(cell.text)
        ticks = "``" if "`" in text else "`"
        return f"{ticks}{text.replace('|', BAR)}{ticks}"
    text = _escaped(cell.text)
    if cell.best:
        return f"**{text}**"
    return f"{text} ≈" if cell.close else text


def _escaped(text: str) -> str:
    """Take from a text what Markdown, HTML and terminals would take for their own."""
    text = printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\|`*\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def rows_csv(entries: Sequence[Entry]) -> str:
    """Write every row as a line of CSV, numbers in full.

    Args:
        entries: All that is reported.

    Returns:
        One line per finished row, and one per method and data set that has none.
    """
    lines = [line for e in entries for line in _lines(e)]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(k for line in lines for k in line)))
    writer.writeheader()
    writer.writerows({k: inert(v) for k, v in line.items()} for line in lines)
    return out.getvalue()


def _lines(entry: Entry) -> list[dict[str, object]]:
    about: dict[str, object] = {
        "suite": entry.result.suite,
        "group": entry.group,
        "data": entry.data,
        "backbone": entry.model,
        "method": entry.label,
        "seeds": entry.status,
        "missing": entry.missing,
        "rates_tried": json.dumps({f"{k:g}": v for k, v in entry.result.searched.items()}),
    }
    return [
        {
            **about,
            "seed": run.config.seed,
            "lr": run.config.lr,
            "policy": run.config.policy,
            "test_accuracy": run.test_accuracy,
            "val_accuracy": run.val_accuracy,
            **{f"test_{n}": v for n, v in (run.test_scores or {}).items() if n != "accuracy"},
            "temperature": run.temperature,
            "test_images": run.data.test,
            "trained_parameters": run.trainable_parameters,
            "planned_peak_bytes": run.planned.peak_bytes,
            "measured_peak_bytes": run.measured_peak_bytes,
            "step_seconds": run.step_seconds,
            "data_fingerprint": run.data.fingerprint,
            "preprocessing": json.dumps(run.preprocessing),
            **run.environment.fields(),
            "folder": str(folder),
            "command": command(run),
        }
        for run, folder in zip(entry.result.runs, entry.result.folders, strict=True)
    ] or [about]

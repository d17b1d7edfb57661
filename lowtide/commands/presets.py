"""`lowtide presets`."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from rich.table import Table

from ..presets import presets as every
from ..presets import unknown
from ..training.parser import Parser
from .console import OUT

SUMMARY = "List published recipes, all of them or those whose names hold a pattern."


def presets(args: Sequence[str]) -> None:
    """Run `lowtide presets`.

    Args:
        args: The command's arguments.
    """
    parser = Parser("presets", SUMMARY)
    parser.add_argument(
        "pattern", type=str, nargs="?", default="", help="Part of a name, * for anything."
    )
    pattern = parser.read(args)["pattern"]
    found = {n: o for n, o in every().items() if fnmatch(n, f"*{pattern}*")}
    if not found:
        error = unknown(pattern)
        raise error
    columns = ("lr", "weight_decay", "drop_path", "batch_size", "epochs")
    table = Table("preset", *(c.partition("_")[0] for c in columns))
    for name, options in found.items():
        table.add_row(name, *(str(options[c]) for c in columns))
    OUT.print(table)
    OUT.print(f"{len(found)} presets; lowtide train --preset NAME --help shows all options of one")

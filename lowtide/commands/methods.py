"""`lowtide methods`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.table import Table

from ..methods import METHODS
from ..training.parser import Parser
from .console import OUT

SUMMARY = "List the methods and their options."


def methods(args: Sequence[str]) -> None:
    """Run `lowtide methods`.

    Args:
        args: The command's arguments.
    """
    Parser("methods", SUMMARY).read(args)
    table = Table("method", "what it trains", "options")
    for name, cls in sorted(METHODS.items()):
        first = (cls.__doc__ or "").strip().split("\n")[0]
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        table.add_row(name, first, ", ".join(f"{f.name}={f.default!r}" for f in fields))
    OUT.print(table)

"""`lowtide report`: parse, write, say where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..report.page import Section
from ..report.write import write_report
from ..training.parser import Parser
from .console import OUT

SUMMARY = "Write what suites and runs reached: one HTML page, Markdown or CSV."


def report(args: Sequence[str]) -> None:
    """Run `lowtide report RUNS...`.

    Args:
        args: The command's arguments.
    """
    parser = Parser("report", SUMMARY)
    parser.add_argument(
        "runs", type=str, nargs="+", help="Suites, runs, or folders that hold some."
    )
    parser.add_argument(
        "--output",
        type=str,
        default="report.html",
        help="File to write: .html one page with everything, .md its tables, .csv every row.",
    )
    parser.add_argument("--title", type=str, help="Title; by default from the folders' names.")
    parser.add_argument(
        "--figures",
        type=str,
        nargs="*",
        default=[],
        help="SVG files to add to a page, such as those of lowtide inspect.",
    )
    given = parser.read(args)
    figures = [Path(f) for f in given["figures"]]
    sections = [_section(f) for f in figures]
    output = Path(given["output"])
    entries = write_report(
        [Path(r) for r in given["runs"]],
        output,
        title=given["title"],
        sections=sections,
        reads=figures,
    )
    rows = sum(len(e.result.runs) for e in entries)
    failed = sum(len(e.result.failed) for e in entries)
    said = f", {failed} failed" if failed else ""
    OUT.print(f"wrote {output}: {rows} finished rows{said}")


def _section(path: Path) -> Section:
    try:
        return Section(path.stem.replace("_", " "), path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path} is no SVG file that can be read") from e

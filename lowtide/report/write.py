"""Write a report, in the format its name says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from ..evolution.report import REPORT
from ..evolution.search import ASKED
from ..inference.places import made_of, refuse_replacing, refuse_sources
from ..paths import write_text
from .page import Section, html
from .rows import Entry, gather
from .text import markdown, rows_csv

Writer = Callable[[str, Sequence[Entry], Iterable[Section]], str]
FORMATS: Mapping[str, Writer] = {
    ".html": html,
    ".md": lambda title, entries, sections: markdown(title, entries),
    ".csv": lambda title, entries, sections: rows_csv(entries),
}


def write_report(
    folders: Iterable[Path],
    output: Path,
    *,
    title: str | None = None,
    sections: Iterable[Section] = (),
    reads: Iterable[Path] = (),
) -> list[Entry]:
    """Write a report of suites and runs.

    Args:
        folders: What `lowtide bench` and `lowtide train` left, or folders that hold such folders.
        output: The file; its ending, `.html`, `.md` or `.csv`, is its format.
        title: Of the page; by default from the names of the folders.
        sections: Figures to add to an HTML page.
        reads: Files that they are from, which the report may not replace.

    Returns:
        What was reported.

    Raises:
        InputError: The ending is none of these, or a folder holds nothing to report, or what it
            holds is damaged, or the file is what it is made of; nothing is written.
    """
    folders = list(folders)
    if output.suffix not in FORMATS:
        raise InputError(f"{output} must end in {' or '.join(FORMATS)}")
    searched = (folder / REPORT for folder in folders if (folder / ASKED).is_file())
    refuse_replacing(output, *reads, *searched)
    entries = gather(folders)
    refuse_sources(
        output, (s for e in entries for r in e.runs for s in made_of(r.config.to_dict()))
    )
    names = ", ".join(dict.fromkeys(f.resolve().name for f in folders))
    text = FORMATS[output.suffix](title or f"lowtide report: {names}", entries, sections)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text.encode("utf-8", "backslashreplace").decode())  # names may be no UTF-8
    return entries

"""Answers for folders of images, as a table or as lines of JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..data.columns import SEPARATOR
from ..data.tree import walk
from ..errors import InputError, inert
from ..paths import whole
from .places import refuse_replacing

THRESHOLD = 0.5
"""Least score of an object that is shown, where none is said."""


def images_in(given: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """List image files, those of folders too.

    Args:
        given: Files, which are taken for images, and folders, in which images are known by suffix.

    Returns:
        The files, each once, those of a folder in the order of their names; and what is to be said
        of others.

    Raises:
        InputError: A folder holds no image.
    """
    found: dict[Path, None] = {}
    notes = []
    for path in given:
        if not path.is_dir():
            found[path] = None
            continue
        images, others = walk(path, set())
        if not images:
            raise InputError(f"{path} holds no image, and {len(others)} other files")
        if others:
            notes.append(
                f"{path}: left out what is no image: {len(others)}, first {str(others[0])!r}"
            )
        found |= dict.fromkeys(images)
    return list(found), notes


def refuse_output(path: Path, *reads: Path) -> None:
    """Refuse an output file that cannot be written, before any prediction.

    Args:
        path: The file.
        *reads: What the answers are made of: the run, and the images.

    Raises:
        InputError: Its ending is of no format, it cannot be written, it is a run's, or is read.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path} must end in {' or '.join(FORMATS)}")
    refuse_replacing(path, *reads)


def write_answers(answers: Iterable[Mapping[str, object]], path: Path) -> int:
    """Write answers as they come; the file is there when all of them are.

    A table has a row for each image: `path`, `class` and `probability` of the best class, and
    `class_2`, `probability_2` and so on of the next; or `path`, `labels` with semicolons between,
    and `label_1`, `probability_1` and so on; or `path` and `value`. Texts that a spreadsheet would
    compute are given a `'` in front.

    Args:
        answers: What `predict` yields.
        path: The file, `.csv` or `.jsonl`.

    Returns:
        How many there are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write = FORMATS[path.suffix.lower()]
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        return write(answers, file)


def _write_lines(answers: Iterable[Mapping[str, object]], file: TextIO) -> int:
    count = 0
    for answer in answers:
        file.write(json.dumps(answer, allow_nan=False) + "\n")
        count += 1
    return count


def _write_table(answers: Iterable[Mapping[str, object]], file: TextIO) -> int:
    writer, count = csv.writer(file, lineterminator="\n"), 0
    for answer in answers:
        cells = _cells(answer)
        if not count:
            writer.writerow(cells)
        writer.writerow([inert(value) for value in cells.values()])
        count += 1
    return count


def _cells(answer: Mapping[str, Any]) -> dict[str, object]:
    """Lay an answer out in one row."""
    best = list(answer.get("probabilities", {}).items())
    if "class" in answer:
        (name, share), *others = best
        cells = {"path": answer["path"], "class": name, "probability": share}
        ranked: Iterable[tuple[int, tuple[str, float]]] = enumerate(others, start=2)
        kind = "class"
    elif "labels" in answer:
        cells = {"path": answer["path"], "labels": SEPARATOR.join(answer["labels"])}
        ranked, kind = enumerate(best, start=1), "label"
    else:
        return dict(answer)
    for rank, (name, share) in ranked:
        cells |= {f"{kind}_{rank}": name, f"probability_{rank}": share}
    return cells


FORMATS: dict[str, Callable[[Iterable[Mapping[str, object]], TextIO], int]] = {
    ".csv": _write_table,
    ".jsonl": _write_lines,
}
"""How answers are written, by the ending of the file."""

"""`lowtide eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..data.formats.corruptions import corruptions_in
from ..inference.corruptions import score_corruptions
from ..inference.dense import is_dense
from ..inference.evaluate import score
from ..inference.loading import add_loading, open_given, read_samples
from ..targets.words import word
from ..training.parser import Parser
from ..training.progress import note
from .console import OUT
from .dense import evaluate_dense

SMALL = 12
"""Classes whose confusion is printed whole."""
PAIRS = 10
"""Confused pairs of more classes that are printed."""
SUMMARY = "Score a finished run on a split of its data, or of other data."


def evaluate(args: Sequence[str]) -> None:
    """Run `lowtide eval`.

    Args:
        args: The command's arguments.
    """
    parser = Parser("eval", SUMMARY)
    parser.add_argument("run", type=str, help="Run folder, or a merged file.")
    parser.add_argument("--data", type=str, help="Other images; by default the run's own.")
    parser.add_argument("--split", type=str, default="test", help="train, val, test or all.")
    parser.add_argument(
        "--over", type=str, default="all", help="Classes to answer from: all, or those present."
    )
    parser.add_argument(
        "--flip", action="store_true", help="Average each image's answer and its mirror image's."
    )
    add_loading(parser)
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    given = parser.read(args)
    if is_dense(Path(given["run"])):
        return evaluate_dense(given)
    trained = open_given(given)
    if given["data"] and corruptions_in(Path(given["data"])):
        result = score_corruptions(trained, Path(given["data"]), given["batch_size"])
        return print(json.dumps(result)) if given["json"] else _print_corruptions(result)
    samples, notes = read_samples(trained, given)
    for line in notes:
        note(line)
    result = score(trained, samples, given["batch_size"], given["over"], given["flip"])
    if given["json"]:
        print(json.dumps(result))
        return
    if "class_accuracy" in result:
        table = Table("class", "accuracy")
        for name, accuracy in result.pop("class_accuracy").items():
            table.add_row(name, f"{accuracy:.3f}")
        OUT.print(table)
        OUT.print(_confusion(result.pop("confusion")))
    images = result.pop("images")
    said = ", ".join(f"{word(name)} {value:.4f}" for name, value in result.items())
    OUT.print(f"{images} images: {said}")


def _confusion(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Lay out which class was taken for which: all of few classes, of many the most frequent."""
    names = list(dict.fromkeys([*counts, *(name for row in counts.values() for name in row)]))
    if len(names) <= SMALL:
        table = Table("true, across: taken for", *names)
        for name in names:
            row = counts.get(name, {})
            table.add_row(name, *(str(row.get(other, "")) for other in names))
        return table
    wrong = [(n, a, b) for a, row in counts.items() for b, n in row.items() if a != b]
    table = Table("is", "taken for", "images", "% of class")
    for n, name, other in sorted(wrong, key=lambda found: -found[0])[:PAIRS]:
        table.add_row(name, other, str(n), f"{100 * n / sum(counts[name].values()):.0f}")
    return table


def _print_corruptions(result: dict[str, Any]) -> None:
    table = Table("corruption", "error")
    for name, error in result["errors"].items():
        table.add_row(name, f"{error:.4f}")
    OUT.print(table)
    if result["mce"] is None:
        return OUT.print("no mean: it is defined over all 15 corruptions")
    OUT.print(f"mean error {result['mean']:.4f}, mCE {result['mce']:.4f} (1 is AlexNet)")

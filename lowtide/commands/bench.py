"""`lowtide bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from rich.table import Table

from ..bench import Suite, read_results, run_suite
from ..errors import LowtideError
from ..training.parser import Parser
from ..values import Within
from .console import OUT

SUMMARY = "Run every row of a suite that is not finished: methods x data sets x seeds."


def bench(args: Sequence[str]) -> None:
    """Run `lowtide bench`.

    Args:
        args: The command's arguments.

    Raises:
        LowtideError: Rows failed; the others are finished.
    """
    given = _parser().read(args)
    path = Path(given["suite"])
    suite = Suite.read(path)
    output = Path(given["output"] or (path if path.is_dir() else Path("runs") / suite.name))
    keep = given["keep_features"]
    failed = run_suite(
        suite,
        output,
        launcher=given["launcher"],
        processes=given["processes"],
        keep_features=Path(keep).resolve() if keep else None,
    )
    table = Table("data", "method", "learning rate", "seeds", "test score")
    for r in read_results(output):
        accuracy = "" if r.accuracy is None else f"{r.accuracy:.4f}"
        spread = "" if r.spread is None else f" ± {r.spread:.4f}"
        rate = "" if r.rate is None else f"{r.rate:g}"
        table.add_row(r.data, r.label, rate, f"{len(r.runs)} of {r.planned}", accuracy + spread)
    OUT.print(table)
    if failed:
        raise LowtideError(
            f"{len(failed)} rows failed, first {failed[0]}: see its failed.txt; the same command"
            " tries them again"
        )


def _parser() -> Parser:
    parser = Parser("bench", SUMMARY)
    parser.add_argument("suite", type=str, help="YAML file, or the folder of a suite begun before.")
    parser.add_argument("--output", type=str, help="Where rows go; by default runs/SUITE.")
    parser.add_argument(
        "--launcher",
        type=Literal["local", "ray"],
        default="local",
        help="local: one row at a time; ray: on a cluster.",
    )
    parser.add_argument(
        "--processes",
        type=Annotated[int, Within(1, 1024)],
        default=1,
        help="Processes of each row.",
    )
    parser.add_argument(
        "--keep-features",
        type=str,
        help="A folder where rows with cache_features find the features of earlier ones.",
    )
    return parser

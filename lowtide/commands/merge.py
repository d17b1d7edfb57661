"""`lowtide merge`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..inference.dense import is_dense
from ..inference.loading import add_loading, open_given
from ..inference.merged import write_merged
from ..inference.places import refuse_replacing
from ..training.parser import Parser
from .console import OUT
from .dense import merge_dense

SUMMARY = "Fold a run into a file of weights that timm loads."


def merge(args: Sequence[str]) -> None:
    """Run `lowtide merge`.

    Args:
        args: The command's arguments.

    Raises:
        InputError: The output is no safetensors file, or the run no run.
    """
    parser = Parser("merge", SUMMARY)
    parser.add_argument("run", type=str, help="Run folder.")
    parser.add_argument("--output", type=str, required=True, help="Safetensors file to write.")
    add_loading(parser)
    given = parser.read(args)
    output = Path(given["output"])
    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors")
    if Path(given["run"]).is_file():
        raise InputError(f"{given['run']} is a file: give the folder of a run")
    checkpoint = Path(given["checkpoint"]) if given["checkpoint"] else None
    refuse_replacing(output, Path(given["run"]), checkpoint)
    if is_dense(Path(given["run"])):
        line = merge_dense(given, output)
        OUT.print(f"wrote {output}; use it with")
        return OUT.print(line)
    line = write_merged(open_given({**given, "device": "cpu"}, original=True), output)
    OUT.print(f"wrote {output}; load it with")
    OUT.print(line)

"""`lowtide export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..inference import exports
from ..inference.loading import add_loading, open_given
from ..serving.tasks import named_runs
from ..training.parser import Parser
from .console import OUT

SUMMARY = "Write a run for other programs: ONNX, TorchScript, safetensors, peft."


def export(args: Sequence[str]) -> None:
    """Run `lowtide export`.

    Args:
        args: The command's arguments.
    """
    parser = Parser("export", SUMMARY)
    parser.add_argument(
        "run",
        type=str,
        nargs="+",
        help="Run folder, or a merged file; several runs of one backbone, RUN or NAME=RUN, as one"
        " graph.",
    )
    parser.add_argument(
        "--format", type=str, required=True, help=f"One of {', '.join(exports.FORMATS)}."
    )
    parser.add_argument(
        "--output", type=str, required=True, help="File to write; for peft a folder."
    )
    add_loading(parser)
    given = parser.read(args)
    runs = named_runs(given["run"]) if len(given["run"]) > 1 else {"": Path(given["run"][0])}
    at = Path(given["checkpoint"]) if given["checkpoint"] else None
    output = exports.place(given["format"], Path(given["output"]), *runs.values(), at)
    if len(runs) > 1:
        lines = exports.export_tasks(runs, at, given["format"], output)
    else:
        trained = open_given({**given, "run": given["run"][0], "device": "cpu"})
        lines = exports.export(trained, given["format"], output)
    OUT.print(f"wrote {output}")
    for line in lines:
        OUT.print(line)

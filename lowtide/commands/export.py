"""`lowtide export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..inference import exports
from ..inference.loading import add_loading, open_given
from ..training.parser import Parser
from .console import OUT

SUMMARY = "Write a run for other programs: ONNX, TorchScript, safetensors, peft."


def export(args: Sequence[str]) -> None:
    """Run `lowtide export`.

    Args:
        args: The command's arguments.
    """
    parser = Parser("export", SUMMARY)
    parser.add_argument("run", type=str, help="Run folder, or a merged file.")
    parser.add_argument(
        "--format", type=str, required=True, help=f"One of {', '.join(exports.FORMATS)}."
    )
    parser.add_argument(
        "--output", type=str, required=True, help="File to write; for peft a folder."
    )
    add_loading(parser)
    given = parser.read(args)
    output = exports.place(given["format"], Path(given["output"]))
    lines = exports.export(open_given({**given, "device": "cpu"}), given["format"], output)
    OUT.print(f"wrote {output}")
    for line in lines:
        OUT.print(line)

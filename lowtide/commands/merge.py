"""`lowtide merge`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from ..arguments import Parser
from ..errors import InputError
from ..loading import add_loading, open_given
from ..paths import refuse_unwritable
from .console import OUT

SUMMARY = "Fold a run into a plain checkpoint that timm loads."


def merge(args: Sequence[str]) -> None:
    """Run `lowtide merge`.

    Args:
        args: The command's arguments.

    Raises:
        InputError: The output is no safetensors file.
    """
    parser = Parser("merge", SUMMARY)
    parser.add_argument("run", type=str, help="Run folder.")
    parser.add_argument("--output", type=str, required=True, help="Safetensors file to write.")
    add_loading(parser)
    given = parser.read(args)
    output = Path(given["output"])
    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors")
    refuse_unwritable(output)
    trained = open_given({**given, "device": "cpu"})
    model = trained.tuned.merge_and_unload()
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, output)
    name, classes = trained.name, trained.tuned.num_classes
    OUT.print(f"wrote {output}; load it with")
    OUT.print(f'timm.create_model("{name}", num_classes={classes}, checkpoint_path="{output}")')

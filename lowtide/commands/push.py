"""`lowtide push`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..inference.places import refuse_replacing
from ..report.card import push_to_hub, write_card_folder
from ..training.parser import Parser
from .console import OUT

SUMMARY = "Upload a run to the Hugging Face hub, with a model card made from it."


def push(args: Sequence[str]) -> None:
    """Run `lowtide push`.

    Args:
        args: The command's arguments.

    Raises:
        InputError: The name is no `USER/NAME`, or the folder is a run's.
    """
    parser = Parser("push", SUMMARY)
    parser.add_argument("run", type=str, help="Run folder.")
    parser.add_argument("name", type=str, help="USER/NAME on the hub.")
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument(
        "--output",
        type=str,
        help="Write the files to this folder, and upload nothing.",
    )
    given = parser.read(args)
    if given["name"].count("/") != 1:
        raise InputError(f"a repository is USER/NAME, not {given['name']}")
    if given["output"] is None:
        address = push_to_hub(given["run"], given["name"], private=given["private"])
        OUT.print(f"uploaded to {address}; lowtide predict hf:{given['name']} IMAGE uses it")
        return
    folder = Path(given["output"])
    refuse_replacing(folder, folder=True)
    write_card_folder(Path(given["run"]), folder, given["name"])
    OUT.print(f"wrote {folder}")

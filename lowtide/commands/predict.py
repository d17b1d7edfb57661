"""`lowtide predict`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..data import UnreadableImage
from ..inference.evaluate import predict as classify
from ..inference.evaluate import too_deep
from ..inference.loading import add_loading, open_given
from ..training.parser import Parser
from ..training.progress import note
from ..values import Count

SUMMARY = "Classify images; one JSON object per line, and a line of complaint per unreadable file."


def predict(args: Sequence[str]) -> None:
    """Run `lowtide predict`.

    Args:
        args: The command's arguments.

    Raises:
        InputError: An image cannot be read; the others were answered.
    """
    parser = Parser("predict", SUMMARY)
    parser.add_argument("run", type=str, help="Run folder, or a merged file.")
    parser.add_argument("images", type=str, nargs="+", help="Image files.")
    parser.add_argument("--top", type=Count, default=5, help="How many classes to print.")
    add_loading(parser)
    given = parser.read(args)
    paths = [Path(p) for p in given["images"]]
    trained = open_given(given)
    for line in too_deep(trained, paths):
        note(line)
    bad: list[UnreadableImage] = []
    options = {"top": given["top"], "batch_size": given["batch_size"]}
    for answer in classify(trained, paths, **options, unreadable=bad.append):
        print(json.dumps(answer, allow_nan=False), flush=True)
    for error in bad[:-1]:
        note(str(error))
    if bad:
        raise bad[-1]

"""`lowtide predict`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..arguments import Parser
from ..evaluate import predict as classify
from ..loading import add_loading, open_given
from ..values import Count

SUMMARY = "Classify images; one JSON object per line."


def predict(args: Sequence[str]) -> None:
    """Run `lowtide predict`.

    Args:
        args: The command's arguments.
    """
    parser = Parser("predict", SUMMARY)
    parser.add_argument("run", type=str, help="Run folder.")
    parser.add_argument("images", type=str, nargs="+", help="Image files.")
    parser.add_argument("--top", type=Count, default=5, help="How many classes to print.")
    add_loading(parser)
    given = parser.read(args)
    paths = [Path(p) for p in given["images"]]
    for answer in classify(
        open_given(given), paths, top=given["top"], batch_size=given["batch_size"]
    ):
        print(json.dumps(answer), flush=True)

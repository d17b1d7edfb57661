"""`lowtide predict`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..data import UnreadableImage
from ..errors import InputError
from ..inference.dense import is_dense
from ..inference.evaluate import predict as classify
from ..inference.evaluate import too_deep
from ..inference.loading import add_loading, open_given
from ..targets import DENSE
from ..training.parser import Parser
from ..training.progress import note
from ..values import Count, Share
from .dense import listed, predict_images

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
    parser.add_argument("images", type=str, nargs="+", help="Image files, or folders of them.")
    parser.add_argument("--top", type=Count, default=5, help="How many classes to print.")
    parser.add_argument(
        "--draw", type=str, help="Folder for pictures of the answers, of runs on pixels or objects."
    )
    parser.add_argument(
        "--output", type=str, help="File for COCO's results, of runs on pixels or objects."
    )
    parser.add_argument(
        "--threshold", type=Share, default=0.5, help="Least score of an object that is shown."
    )
    add_loading(parser)
    given = parser.read(args)
    if is_dense(Path(given["run"])):
        return predict_images(given)
    for name in ("draw", "output"):
        if given[name]:
            raise InputError(f"--{name} is for runs on pixels or objects: {', '.join(DENSE)}")
    paths = listed([Path(p) for p in given["images"]])
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

"""`lowtide predict`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data import UnreadableImage
from ..errors import InputError
from ..inference.dense import is_dense
from ..inference.evaluate import predict as answers_to
from ..inference.evaluate import too_deep
from ..inference.loading import add_loading, open_given
from ..inference.predictions import THRESHOLD, images_in, refuse_output, write_answers
from ..targets import DENSE
from ..training.parser import Parser
from ..training.progress import note
from ..values import Count, Share
from .console import OUT
from .dense import predict_images

TOP = 5
SUMMARY = "Answer images, and all below folders: as a table, or one JSON object per line."


def predict(args: Sequence[str]) -> None:
    """Run `lowtide predict`.

    Args:
        args: The command's arguments.

    Raises:
        InputError: An image cannot be read; the others were answered.
    """
    parser = Parser("predict", SUMMARY)
    parser.add_argument("run", type=str, help="Run folder, or a merged file.")
    parser.add_argument("images", type=str, nargs="+", help="Image files, and folders of them.")
    parser.add_argument(
        "--output",
        type=str,
        help="File to write: .csv or .jsonl, or of pixels and objects .json with COCO's results; by"
        " default lines of JSON are printed.",
    )
    parser.add_argument("--top", type=Count, help=f"How many classes to give, {TOP} if not said.")
    parser.add_argument(
        "--draw", type=str, help="Folder for pictures of the answers, of pixels and objects."
    )
    parser.add_argument(
        "--threshold",
        type=Share,
        help=f"Least score of an object that is shown, {THRESHOLD} if not said.",
    )
    add_loading(parser)
    given = parser.read(args)
    if is_dense(Path(given["run"])):
        return predict_images(given)
    for name in ("draw", "threshold"):
        if given[name] is not None:
            raise InputError(f"--{name} is for runs of pixels and objects: {', '.join(DENSE)}")
    output = Path(given["output"]) if given["output"] else None
    if output:
        refuse_output(output, Path(given["run"]), *map(Path, given["images"]))
    paths, notes = images_in([Path(p) for p in given["images"]])
    trained = open_given(given)
    for line in [*notes, *too_deep(trained, paths)]:
        note(line)
    bad: list[UnreadableImage] = []
    options = {"top": given["top"] or TOP, "batch_size": given["batch_size"]}
    _give(answers_to(trained, paths, **options, unreadable=bad.append), output, len(paths))
    for error in bad[:-1]:
        note(str(error))
    if bad:
        raise bad[-1]


def _give(answers: Iterator[dict[str, Any]], output: Path | None, images: int) -> None:
    """Write answers to a file, or print each as soon as it is there."""
    if output:
        OUT.print(f"wrote {output}: {write_answers(answers, output)} of {images} images")
        return
    for answer in answers:
        print(json.dumps(answer, allow_nan=False), flush=True)

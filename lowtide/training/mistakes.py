"""The most confident errors of a run, with small copies of the images, to look at in a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import Tensor

from ..data import Dataset, Preprocessing, Sample, UnreadableImage
from ..data.dataset import relative
from ..errors import InputError
from ..paths import read_json, write_text
from ..values import Within
from .jpeg import encode, refuse_other
from .records import Record

MISTAKES = "mistakes.json"
MOST = 16
"""Errors that are kept."""
SIDE = 96
"""Longest side of a copy, in pixels."""
LARGEST = 16 << 10
"""Bytes of a copy, at most; one of 96 pixels takes 2 to 5 thousand."""


@dataclass(frozen=True, kw_only=True)
class Mistake(Record):
    """A test image that was taken for another class than its own.

    Attributes:
        path: Of the image, relative to the data's root.
        true: Name of its class.
        predicted: Name of the class it was taken for.
        probability: That of the answer.
        thumbnail: A JPEG, in base64.
    """

    path: str
    true: str
    predicted: str
    probability: Annotated[float, Within(0, 1)]
    thumbnail: str

    def __post_init__(self) -> None:
        refuse_other(self.thumbnail, f"the thumbnail of {self.path}", LARGEST)


def find_mistakes(
    outputs: Tensor,
    targets: Tensor,
    samples: Sequence[Sample],
    dataset: Dataset,
    preprocessing: Preprocessing,
) -> list[Mistake]:
    """Find the errors that a classifier is most sure of.

    Args:
        outputs: Logits (N, K).
        targets: Classes (N,).
        samples: The images, in the same order.
        dataset: Names them and their classes.
        preprocessing: Decodes them.

    Returns:
        At most `MOST`, the most confident first.
    """
    shares, answers = outputs.softmax(-1).max(-1)
    order = [i for i in shares.argsort(descending=True).tolist() if answers[i] != targets[i]]
    found: list[Mistake] = []
    for i in order[:MOST]:
        copy = _thumbnail(samples[i].path, preprocessing)
        if copy is not None:
            found.append(
                Mistake(
                    path=relative(samples[i].path, dataset.root),
                    true=dataset.classes[int(targets[i])],
                    predicted=dataset.classes[int(answers[i])],
                    probability=float(shares[i]),
                    thumbnail=copy,
                )
            )
    return found


def _thumbnail(path: Path, preprocessing: Preprocessing) -> str | None:
    """Make a small JPEG; None where the image has gone since, or does not compress."""
    try:
        image = preprocessing.decode(path).convert("RGB")
    except UnreadableImage:
        return None
    image.thumbnail((SIDE, SIDE))
    return encode(image, LARGEST)


def write_mistakes(mistakes: Sequence[Mistake], folder: Path) -> None:
    """Write the errors into a run folder.

    Args:
        mistakes: What `find_mistakes` found.
        folder: The run folder.
    """
    content = {"mistakes": [m.to_dict() for m in mistakes]}
    write_text(folder / MISTAKES, json.dumps(content, indent=1) + "\n")


def read_mistakes(folder: Path) -> list[Mistake]:
    """Read what `write_mistakes` wrote.

    Args:
        folder: A run folder.

    Returns:
        The errors; none where the run kept none.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / MISTAKES
    if not path.is_file():
        return []
    content = read_json(path)
    rows = content.get("mistakes") if isinstance(content, dict) else None
    if not isinstance(rows, list) or len(rows) > MOST:
        raise InputError(f"{path} is damaged: it holds no list of {MOST} mistakes or fewer")
    try:
        return [Mistake.from_dict(row, f"mistakes.{i}") for i, row in enumerate(rows)]
    except InputError as e:
        raise InputError(f"{path} is damaged: {e}") from e

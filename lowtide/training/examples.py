"""Examples of a dense run: its best and worst test images, and its precision-recall curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from PIL import Image
from torch import Tensor, nn

from ..data.dataset import relative
from ..dense.drawing import draw, shrunk
from ..dense.results import Predicted
from ..dense.tasks import DenseTask
from ..dense.tasks.kind import Target
from ..errors import InputError
from ..paths import read_json, write_text
from ..values import Within
from .dense_data import Described
from .jpeg import encode, refuse_other
from .records import Record

EXAMPLES = "examples.json"
MOST = 6
"""Images that are kept from each end."""
SIDE = 320
"""Longest side of a picture, in pixels."""
LARGEST = 48 << 10
"""Bytes of a picture, at most; one of 320 pixels takes 10 to 20 thousand."""

Share = Annotated[float, Within(0, 1)]
Curves = Mapping[str, Mapping[str, tuple[Share, ...]]]
Ranked = Sequence[tuple[float, Path]]
"""Images with what each of them alone scores."""


@dataclass(frozen=True, kw_only=True)
class Example(Record):
    """A test image with its labels and predictions.

    Attributes:
        path: Of the image, relative to the data's root.
        score: What it scores alone: the run's metric of this image.
        truth: A picture of what is labelled: a JPEG, in base64.
        predicted: A picture of what was predicted.
    """

    path: str
    score: Share
    truth: str
    predicted: str

    def __post_init__(self) -> None:
        for name in ("truth", "predicted"):
            refuse_other(getattr(self, name), f"{name} of {self.path}", LARGEST)


@dataclass(frozen=True, kw_only=True)
class Examples(Record):
    """The examples of a run.

    Attributes:
        best: Those that score best alone, the best first.
        worst: Those that score worst, the worst first.
        curves: See `Scores.curves`.
    """

    best: tuple[Example, ...] = ()
    worst: tuple[Example, ...] = ()
    curves: Curves = field(default_factory=dict)

    def __post_init__(self) -> None:
        if max(len(self.best), len(self.worst)) > MOST:
            raise InputError(f"it holds more than {MOST} best or worst images")


def image_score(task: DenseTask, predicted: Predicted, target: Target) -> float | None:
    """Score one image alone.

    Args:
        task: The task.
        predicted: What it predicted.
        target: What is labelled.

    Returns:
        The task's metric; None where nothing defines it, as on an image without objects.
    """
    scorer = task.scorer()
    scorer.update(predicted, target)
    return scorer.compute().main


def ends(ranked: Ranked) -> tuple[list[tuple[float, Path]], list[tuple[float, Path]]]:
    """Take the best and the worst images; none is both.

    Args:
        ranked: Images with their scores, in any order.

    Returns:
        The best first, and the worst first, `MOST` of each at most.
    """
    order = sorted(ranked)
    worst = order[: min(MOST, len(order) // 2)]
    return order[len(worst) :][-MOST:][::-1], worst


def find_examples(
    task: DenseTask, model: nn.Module, dataset: Described, ranked: Ranked, curves: Curves
) -> Examples:
    """Draw labels and predictions of the best and the worst images.

    Args:
        task: The task.
        model: The model, in evaluation.
        dataset: The labels.
        ranked: Images with their scores.
        curves: To keep beside them.

    Returns:
        What is kept.
    """

    def pictures(some: Ranked) -> tuple[Example, ...]:
        made = (_example(task, model, dataset, score, path) for score, path in some)
        return tuple(e for e in made if e is not None)

    best, worst = ends(ranked)
    return Examples(best=pictures(best), worst=pictures(worst), curves=curves)


def _example(
    task: DenseTask, model: nn.Module, dataset: Described, score: float, path: Path
) -> Example | None:
    """Draw an image twice; None where a picture of it does not compress."""
    image, target = dataset.item(path)
    plain = image.as_subclass(Tensor)
    (predicted,) = task.predict(model, [plain])
    truth, answer = (_picture(plain, f, task.names) for f in (task.labelled(target), predicted))
    if truth is None or answer is None:
        return None
    name = relative(path, dataset.root)
    return Example(path=name, score=score, truth=truth, predicted=answer)


def _picture(image: Tensor, found: Predicted, names: Sequence[str]) -> str | None:
    if not isinstance(found, Tensor):
        found = {name: value.cpu() for name, value in found.items()}
    small, inside = shrunk(image, found if isinstance(found, dict) else found.cpu(), SIDE)
    drawn = draw(small, inside, names)
    return encode(Image.fromarray(drawn.permute(1, 2, 0).numpy()), LARGEST)


def write_examples(examples: Examples, folder: Path) -> None:
    """Write the examples into a run folder.

    Args:
        examples: What `find_examples` found.
        folder: The run folder.
    """
    write_text(folder / EXAMPLES, json.dumps(examples.to_dict(), indent=1) + "\n")


def read_examples(folder: Path) -> Examples:
    """Read what `write_examples` wrote.

    Args:
        folder: A run folder.

    Returns:
        What was kept; nothing where the run kept none.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / EXAMPLES
    if not path.is_file():
        return Examples()
    try:
        return Examples.from_dict(read_json(path))
    except InputError as e:
        raise InputError(f"{path} is damaged: {e}") from e

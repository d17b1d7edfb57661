"""The images and labels that a folder names, before any image is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ...errors import shown
from .faults import Fault
from .objects import AnnotatedImage, Annotation

Kind = Literal["boxes", "instances", "semantic"]
"""What is learnt: boxes, boxes with a mask each, or a class for every pixel."""

KINDS: tuple[Kind, ...] = ("boxes", "instances", "semantic")

GIVES: dict[Kind, tuple[Kind, ...]] = {
    "boxes": ("boxes",),
    "instances": ("instances", "boxes", "semantic"),
    "semantic": ("semantic",),
}
"""What labels of a kind can be read as."""


@dataclasses.dataclass(frozen=True)
class DenseListing:
    """Everything one source says.

    Attributes:
        format: The kind of source, for the run record.
        root: The folder that paths are relative to.
        splits: Images of each declared role; the single key `all` if the source declares none.
        classes: Names, in order; None where masks alone tell how many there are.
        kind: The richest that its labels are.
        values: For semantic masks, the class of each stored value from 0, 255 for ignored ones;
            None where a value is its class.
        faults: What was wrong in the text.
        notes: What a reader of the run record should know.
    """

    format: str
    root: Path
    splits: dict[str, list[AnnotatedImage]]
    classes: tuple[str, ...] | None
    kind: Kind
    values: np.ndarray | None = None
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()


def objects_of(splits: Mapping[str, Iterable[AnnotatedImage]]) -> Iterator[Annotation]:
    """Go through the objects of all images.

    Args:
        splits: The images.

    Yields:
        Each object.
    """
    for part in splits.values():
        for image in part:
            yield from image.objects


def unknown_labels(
    splits: Mapping[str, Iterable[AnnotatedImage]], classes: Sequence[str]
) -> list[Fault]:
    """Find the objects whose class has no name.

    Args:
        splits: The images.
        classes: The names.

    Returns:
        A fault for each.
    """
    return [
        Fault("classes beyond the names", f"{o.where}: {shown(o.label)} is not among the names")
        for o in objects_of(splits)
        if o.label not in classes
    ]


class DenseFormat(NamedTuple):
    """A format: how it is recognised, and how it is read.

    Attributes:
        claims: Whether a path is in this format.
        read: Reads a path that it claims; a folder that holds labels of several kinds gives those
            of the kind that is asked for, by default the richest.
        rank: Of several formats that claim a path, the one of the smallest rank reads it.
        about: What to call it in a message.
    """

    claims: Callable[[Path], object]
    read: Callable[[Path, Kind | None], DenseListing]
    rank: int
    about: str

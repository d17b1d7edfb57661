"""Predictions of a run for each test image, so that methods can be compared image by image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data import Sample
from ..data.dataset import relative
from ..errors import InputError
from ..tuning.adapter_files import read_metadata, read_tensors, write_tensors

PREDICTIONS = "predictions.safetensors"
IMAGES = "images"
"""The key in the file's header of the hash of the images."""


@dataclass(frozen=True)
class Predictions:
    """The test images of a run, in its order.

    Attributes:
        images: SHA-256 of their paths and classes: runs that have the same saw the same images.
        true: Their classes `(N,)`, int32.
        predicted: What they were taken for `(N,)`, int32.
    """

    images: str
    true: Tensor
    predicted: Tensor

    @property
    def right(self) -> Tensor:
        """Which answers are right, `(N,)`."""
        return self.true == self.predicted


def predictions_of(
    outputs: Tensor, targets: Tensor, samples: Sequence[Sample], root: Path
) -> Predictions:
    """Compute predictions from a classifier's outputs.

    Args:
        outputs: Logits `(N, K)`.
        targets: Classes `(N,)`.
        samples: The images, in the same order.
        root: The folder that their paths are told from.

    Returns:
        The answers.
    """
    names = [relative(sample.path, root) for sample in samples]
    said = json.dumps([names, targets.tolist()]).encode()
    return Predictions(hashlib.sha256(said).hexdigest(), targets.int(), outputs.argmax(-1).int())


def write_predictions(predictions: Predictions, folder: Path) -> None:
    """Write predictions into a run folder: 8 bytes per image.

    Args:
        predictions: The answers.
        folder: The run folder.
    """
    tensors = {"true": predictions.true, "predicted": predictions.predicted}
    write_tensors(folder / PREDICTIONS, tensors, {IMAGES: predictions.images})


def read_predictions(folder: Path) -> Predictions | None:
    """Read what `write_predictions` wrote.

    Args:
        folder: A run folder.

    Returns:
        The answers; None where the run kept none.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        return None
    try:
        kept, images = read_tensors(path), read_metadata(path)[IMAGES]
        true, predicted = kept["true"], kept["predicted"]
    except KeyError as e:
        raise InputError(f"{path} is damaged: it holds no {e}") from e
    if not (true.dtype == predicted.dtype == torch.int32 and true.shape == predicted.shape):
        raise InputError(f"{path} is damaged: expected two int32 vectors of one length")
    return Predictions(images, true, predicted)

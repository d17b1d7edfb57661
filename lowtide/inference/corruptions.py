"""Score a finished run on ImageNet-C."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data import read
from ..data.formats.corruptions import corruption_error, severities_in
from .evaluate import Trained, score


def score_corruptions(trained: Trained, folder: Path, batch_size: int = 32) -> dict[str, Any]:
    """Measure how often a model is wrong on ImageNet-C.

    Args:
        trained: The model.
        folder: A folder `corruption/severity/class/...`.
        batch_size: Images per forward pass.

    Returns:
        Top-1 error by `corruption/severity` and by corruption, their mean over the 15, and mCE.
    """
    errors = {}
    for key, path in severities_in(folder).items():
        data = read(path, classes=trained.classes, val_fraction=0, test_fraction=0)
        errors[key] = 1 - score(trained, data.train, batch_size)["accuracy"]
    each = {f"{name}/{severity}": error for (name, severity), error in errors.items()}
    return {"each": each, **asdict(corruption_error(errors))}

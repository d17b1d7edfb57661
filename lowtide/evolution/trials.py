"""Candidates that share no weights: each is trained for a few epochs and validated."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..core.method import METHODS
from ..errors import InputError, LowtideError
from ..training.config import RunConfig
from ..training.loop import train
from ..training.prepare import prepare
from .space import Genes, Space

TRIAL = "trial"
WORST = -1e30
"""The score of a candidate whose training fails, such as one whose loss becomes infinite."""


def classes_to_compare(config: RunConfig, folder: Path) -> int:
    """Read the data once, before anything is trained.

    Args:
        config: The run.
        folder: Of the search; nothing is written.

    Returns:
        How many classes there are.

    Raises:
        InputError: There are no images to validate on.
    """
    run = prepare(replace(config, method=METHODS["linear"]()), folder)
    if not run.dataset.val:
        raise InputError("search compares on validation images, and there are none")
    return len(run.targets.names)


def trial_score(
    config: RunConfig, folder: Path, space: Space, epochs: int
) -> Callable[[Genes], float]:
    """Score candidates by short training, each at its method's own rate unless one is given.

    Args:
        config: The run.
        folder: Of the search; holds one trial at a time.
        space: Makes methods.
        epochs: How long.

    Returns:
        From a candidate to the metric on the validation images.
    """

    def score(genes: Genes) -> float:
        tried = replace(config, method=space.method(genes), epochs=epochs, skip_test=True)
        try:
            reached = train(tried, folder / TRIAL, overwrite=True).validated
        except LowtideError:
            reached = None
        shutil.rmtree(folder / TRIAL, ignore_errors=True)
        return WORST if reached is None else float(reached)

    return score

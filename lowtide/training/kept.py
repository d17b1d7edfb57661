"""The epoch that is kept: which it is, its weights in the run folder, and when to stop waiting.

Its file is of its own name, and the one before is removed once the training checkpoint says so; a
crash leaves the file that the checkpoint speaks of.
"""

from __future__ import annotations

import math
from pathlib import Path

from ..tuning.adapter_files import read_tensors, write_tensors
from .prepare import Run

BEST = "best-{}.safetensors"


def keep_if_best(run: Run) -> None:
    """Keep the model as it stands, if it is the best on the validation images so far.

    Of epochs of equal score the last is kept; the start gives way to a better one only. Called
    in the state that is scored and saved, an average where there is one.

    Args:
        run: The run after an epoch, or before the first one.
    """
    if run.config.keep == "last":
        return
    epoch = len(run.history)
    if run.kept_epoch is not None:
        best, now = _rank(run, run.kept_epoch), _rank(run, epoch)
        if now < best or (now == best and run.kept_epoch == 0):
            return
    run.kept_epoch = epoch
    if run.main:
        write_tensors(run.folder / BEST.format(epoch), run.tuned.adapter_state(), {})


def score_at(run: Run, epoch: int) -> float | None:
    """Look up the validation score after an epoch; higher is better.

    Args:
        run: The run; it validates.
        epoch: Which; 0 is the start.

    Returns:
        The score of the run's task; None where it is not defined on these images.
    """
    return run.history[epoch - 1].validated if epoch else run.start_score


def _rank(run: Run, epoch: int) -> float:
    score = score_at(run, epoch)
    return -math.inf if score is None else score


def waited_enough(run: Run) -> bool:
    """Tell whether `patience` epochs have passed without a better one.

    Args:
        run: The run.

    Returns:
        Whether to stop.
    """
    if run.config.patience is None:
        return False
    scores = [_rank(run, epoch) for epoch in range(len(run.history) + 1)]
    return len(scores) - 1 - scores.index(max(scores)) >= run.config.patience


def put_back(run: Run) -> None:
    """Load the weights of the epoch that is kept into the model.

    Of keep `auto` that is the best one if the run ended early, or if the schedule's last epoch is
    worse by more than a standard error: if of n validation images, k of which the best epoch has
    right, it has right fewer by a share of more than `standard_error`. Else it is the last. A score
    that is no accuracy is taken at its word.

    Args:
        run: The run after its last epoch.
    """
    last = len(run.history)
    if run.config.keep == "auto" and run.kept_epoch is not None and last == run.config.epochs:
        best = _rank(run, run.kept_epoch)
        counted = run.targets.metric == "accuracy"
        error = standard_error(best, len(run.dataset.val)) if counted else 0.0
        run.kept_epoch = last if best - _rank(run, last) <= error else run.kept_epoch
    if run.kept_epoch not in (None, last):
        run.tuned.load_adapter_state(read_tensors(run.folder / BEST.format(run.kept_epoch)))


def standard_error(accuracy: float, images: int) -> float:
    """Estimate the standard error of an accuracy, k of n images right (Agresti and Coull 1998).

        sqrt(p (1 - p) / (n + 4)),    p = (k + 2) / (n + 4)

    Args:
        accuracy: The share k / n.
        images: How many there are, n.

    Returns:
        The error, a share; above 0 also where all are right.
    """
    p = (images * accuracy + 2) / (images + 4)
    return math.sqrt(p * (1 - p) / (images + 4))


def drop_others(run: Run) -> None:
    """Remove the files of epochs that are no longer the best.

    Args:
        run: The run; its training checkpoint is written.
    """
    own = None if run.kept_epoch is None else BEST.format(run.kept_epoch)
    drop_kept(run.folder, but=own)


def drop_kept(folder: Path, but: str | None = None) -> None:
    """Remove the files of best epochs.

    Args:
        folder: The run folder.
        but: The name of the one that stays.
    """
    for path in folder.glob(BEST.format("*")):
        if path.name != but:
            path.unlink(missing_ok=True)  # every process of a run looks

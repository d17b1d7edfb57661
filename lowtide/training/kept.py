"""What is kept of a run: its last epoch, its best one, or a point between its start and its end.

A best epoch's file is of its own name, and the one before is removed once the training checkpoint
says so; a crash leaves the file that the checkpoint speaks of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..tuning.adapter_files import read_tensors, write_tensors
from .prepare import Run
from .scoring import score_of

BEST = "best-{}.safetensors"
START = "start.safetensors"
State = Mapping[str, Tensor]
SHARES = (0.25, 0.5, 0.75)
"""Points of the way from the start to the end that are tried, beside both."""


@dataclass(frozen=True)
class Kept:
    """The model of a run that is tested and saved.

    Attributes:
        epoch: Whose weights it has, 0 for the start; or which it is on the way to.
        share: How far from the start to that epoch it is; 1 is the epoch itself.
        score: That on the validation images, None where there is none.
    """

    epoch: int
    share: float
    score: float | None


def keep_start(run: Run) -> None:
    """Keep the model as it stands before the first update, if it may be gone back to.

    Args:
        run: The run; nothing has been trained.
    """
    if run.config.keep == "auto" and run.main:
        write_tensors(run.folder / START, run.tuned.adapter_state(), {})
    keep_if_best(run)


def keep_if_best(run: Run) -> None:
    """Keep the model as it stands, if it is the best on the validation images so far.

    Of epochs of equal score the last is kept; the start gives way to a better one only. Called
    in the state that is scored and saved, an average where there is one.

    Args:
        run: The run after an epoch, or before the first one.
    """
    if run.config.keep != "best":
        return
    epoch = len(run.history)
    if run.kept_epoch is not None:
        best, now = _rank(score_at(run, run.kept_epoch)), _rank(score_at(run, epoch))
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


def _rank(score: float | None) -> float:
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
    scores = [_rank(score_at(run, epoch)) for epoch in range(len(run.history) + 1)]
    return len(scores) - 1 - scores.index(max(scores)) >= run.config.patience


def put_back(run: Run, model: nn.Module) -> Kept:
    """Make the model the one that is kept.

    Args:
        run: The run after its last epoch.
        model: What runs its model.

    Returns:
        Which it is.
    """
    if run.config.keep == "auto":
        return _go_between(run, model)
    last = len(run.history)
    kept = last if run.kept_epoch is None else run.kept_epoch
    if kept != last:
        run.tuned.load_adapter_state(read_tensors(run.folder / BEST.format(kept)))
    return Kept(kept, 1.0, score_at(run, kept))


def _go_between(run: Run, model: nn.Module) -> Kept:
    """Move to the best point between the start and the end, or stay at the end.

        w(a) = w_0 + a (w_T - w_0),    a in 0, 1/4, 1/2, 3/4, 1

    (WiSE-FT, Wortsman et al. 2022), where w is all that trains and statistics that moved. The end
    stays unless a point is better by more than a standard error on the validation images; of
    equals the last. A score that is no accuracy is taken at its word.

    Args:
        run: The run after its last epoch.
        model: What runs its model.

    Returns:
        Which point it is.
    """
    start, state = read_tensors(run.folder / START), run.tuned.adapter_state()
    end = {key: value.to("cpu", copy=True) for key, value in state.items()}
    scores = {0.0: run.start_score, 1.0: score_at(run, len(run.history))}
    for share in SHARES:
        _move(state, start, end, share)
        scores[share] = score_of(run, model, run.dataset.val)
    ranks = {a: _rank(score) for a, score in scores.items()}
    best = max(ranks, key=lambda a: (ranks[a], a))
    counted = run.targets.metric == "accuracy"
    error = standard_error(ranks[best], len(run.dataset.val)) if counted else 0.0
    share = 1.0 if ranks[best] - ranks[1.0] <= error else best
    _move(state, start, end, share)
    return Kept(len(run.history), share, scores[share])


@torch.no_grad()
def _move(state: State, start: State, end: State, share: float) -> None:
    """Write w(share) over what trains, a tensor at a time; whole numbers are those of the end."""
    for key, value in state.items():
        if share == 1 or not value.is_floating_point():
            value.copy_(end[key])
        else:
            value.copy_(torch.lerp(start[key].float(), end[key].float(), share))


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
    for path in run.folder.glob(BEST.format("*")):
        if path.name != own:
            path.unlink(missing_ok=True)  # every process of a run looks


def drop_kept(folder: Path) -> None:
    """Remove the files of best epochs and of the start.

    Args:
        folder: The run folder.
    """
    for path in (*folder.glob(BEST.format("*")), folder / START):
        path.unlink(missing_ok=True)

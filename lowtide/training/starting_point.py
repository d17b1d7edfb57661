"""Prepare a fresh run: its folder, its classifier at a probe, and the score of the start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..paths import write_text
from ..targets.words import word
from ..tuning.adapter_files import CONFIG as ADAPTER
from ..tuning.adapter_files import WEIGHTS
from .config import write_yaml
from .decided import Decided
from .examples import EXAMPLES
from .kept import drop_kept, keep_start
from .mistakes import MISTAKES
from .owner import CHECKPOINT, CONFIG, LOG, SUMMARY
from .predictions import PREDICTIONS
from .prepare import Run
from .probe import images_for_probe, probed_maps, start_at_probe, trains_beside
from .progress import note
from .scoring import score_of
from .split import Split

SOFTENED = 0.3
"""What a probe's logits are multiplied by before anything trains beside it."""


def probe(run: Run, model: nn.Module) -> bool:
    """Start the classifier at a probe.

    Args:
        run: The run; its classifier is changed in place.
        model: What runs it.

    Returns:
        Whether there was anything to fit.
    """
    order = np.random.default_rng(run.config.seed).permutation(len(run.dataset.train))
    some = [run.dataset.train[i] for i in order[: images_for_probe(run.tuned, len(order))]]
    batches = (batch[:2] for batch in run.batches(tuple(some), shared=False))
    if not some or not start_at_probe(run.tuned, model, batches, run.targets, run.config.seed):
        if run.main:
            note("the classifier reads no vector per image, or there is one class: no probe")
        return False
    if run.main:
        note(f"the classifier starts at a linear probe of {len(some)} images")
    return True


def score_start(run: Run, model: nn.Module) -> None:
    """Score the start, where it is a probe or may be kept.

    Args:
        run: The run; the score is recorded in it.
        model: What runs it.
    """
    if not run.dataset.val or not run.begins_trained:
        return
    if not (run.probed or run.config.keep != "last"):
        return
    run.start_score = score_of(run, model, run.dataset.val)
    keep_start(run)
    if run.main and run.start_score is not None:
        note(f"val {word(run.targets.metric)} at the start {run.start_score:.3f}")


def soften(run: Run) -> None:
    """Shrink the logits of a probe that something trains beside: W <- .3 W, b <- .3 b.

    The answers stay what they were. A probe that is sure of the images it was fitted to leaves
    nothing in their loss for the backbone to learn from; docs/runs.md has what that costs.

    Args:
        run: The run; its start has been scored, and kept where it may be gone back to.
    """
    if run.probed and run.targets.logits and trains_beside(run.tuned):
        with torch.no_grad():
            for logits in probed_maps(run.tuned):
                for p in logits.parameters():
                    p.mul_(SOFTENED)


def begin_folder(run: Run, folder: Path, continues: bool) -> None:
    """Write the split and the options into the run folder before the first update.

    Args:
        run: The run.
        folder: Where to; an old run in it is removed.
        continues: Whether the run there goes on.
    """
    if not continues:
        _clear(folder)
    if not run.history:
        Split.of(run.dataset).write(folder)
    write_text(folder / CONFIG, write_yaml(run.config.to_dict()))
    note(str(Decided.of(run.config)))


def _clear(folder: Path) -> None:
    """Remove an old run; what says that there is a model goes first: it answers for no new one."""
    for stale in (ADAPTER, WEIGHTS, SUMMARY, LOG, CHECKPOINT, MISTAKES, EXAMPLES, PREDICTIONS):
        (folder / stale).unlink(missing_ok=True)
    drop_kept(folder)

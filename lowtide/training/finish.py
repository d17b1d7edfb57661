"""The end of a run: test the model, save the adapter, write the summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, singledispatch
from pathlib import Path
from statistics import median

import torch
from torch import nn

from ..data import Sample
from ..paths import write_text
from ..targets import describe
from ..targets.calibration import fit_temperature
from .environment import environment
from .kept import Kept, drop_kept
from .mistakes import Mistake, find_mistakes, write_mistakes
from .owner import CHECKPOINT, SUMMARY
from .predictions import Predictions, predictions_of, write_predictions
from .prepare import Run
from .scoring import confusion_of, outputs_of
from .summary import (
    SCHEMA,
    Confused,
    DataSummary,
    Planned,
    RunOptions,
    RunSummary,
    scored,
)


def finish(run: Run, model: nn.Module, kept: Kept) -> RunSummary:
    """Test the kept model, save adapter and summary, drop the training checkpoint."""
    validated = scores_on(run, model, run.dataset.val)
    tested = scores_on(run, model, () if run.config.skip_test else run.dataset.test)
    if run.accelerator.device.type == "cuda":
        run.measured_bytes = torch.cuda.max_memory_allocated()
    summary = summarise(run, kept, validated, tested)
    if run.main:
        save_adapter(run)
        tested.leave(run.folder)
        write_text(run.folder / SUMMARY, json.dumps(summary.to_dict(), indent=2) + "\n")
        (run.folder / CHECKPOINT).unlink(missing_ok=True)
        drop_kept(run.folder)
    if run.features:
        run.features.drop()
    return summary


@dataclass(frozen=True)
class Scored:
    """Outputs and scores of the final model on some images.

    Attributes:
        scores: Scores by name; none without images.
        temperature: What fits its probabilities to these images; None where it has none.
        confusion: Images by true and predicted class, zeros left out; None where there are none.
        by_class: Of a dense task, scores by name and class.
        leave: Writes what is to be looked at into a run folder.
    """

    scores: Mapping[str, float]
    temperature: float | None = None
    confusion: tuple[Confused, ...] | None = None
    by_class: Mapping[str, Mapping[str, float]] | None = None
    leave: Callable[[Path], None] = lambda folder: None


@singledispatch
def scores_on(run: Run, model: nn.Module, samples: tuple[Sample, ...]) -> Scored:
    """Score a model on images of its run; other kinds of runs register theirs."""
    outputs, targets = outputs_of(run, model, samples)
    scores = run.targets.scores(outputs, targets) if len(targets) else {}
    if run.targets.task != "classify":
        return Scored(scores)
    counts = confusion_of(outputs, targets)
    rows = (Confused(t, p, int(counts[t, p])) for t, p in counts.nonzero().tolist())
    temperature = fit_temperature(outputs, targets) if len(targets) else None
    wrong = find_mistakes(outputs, targets, samples, run.dataset, run.preprocessing)
    answers = predictions_of(outputs, targets, samples, run.dataset.root) if len(targets) else None
    return Scored(scores, temperature, tuple(rows), leave=partial(_leave, wrong, answers))


def _leave(wrong: Sequence[Mistake], answers: Predictions | None, folder: Path) -> None:
    write_mistakes(wrong, folder)
    if answers is not None:
        write_predictions(answers, folder)


def summarise(run: Run, kept: Kept, validated: Scored, tested: Scored) -> RunSummary:
    """Gather the summary of a finished run."""
    trained, total = run.tuned.trainable_counts()
    return RunSummary(
        schema=SCHEMA,
        config=RunOptions.from_dict(run.config.to_dict()),
        data=DataSummary.from_dict(run.dataset.describe()),
        preprocessing=run.preprocessing.to_dict(),
        trainable_parameters=trained,
        total_parameters=total,
        planned=Planned.from_dict(run.planned.to_dict()),
        measured_peak_bytes=run.measured_bytes or None,
        step_seconds=median(run.step_s) if run.step_s else None,
        **scored("start", run.targets, run.start_score),
        history=tuple(run.history),
        kept_epoch=kept.epoch,
        kept_share=kept.share,
        **scored("val", run.targets, kept.score),
        test_accuracy=tested.scores.get("accuracy"),
        metric=run.targets.metric,
        val_scores=validated.scores,
        test_scores=tested.scores,
        test_class_scores=tested.by_class,
        temperature=validated.temperature,
        targets=run.targets.to_dict(),
        test_confusion=tested.confusion,
        environment=environment(run.accelerator.device, run.accelerator.num_processes),
    )


def save_adapter(run: Run) -> None:
    """Save the adapter with its backbone's name, pre-processing and classes."""
    run.tuned.save_pretrained(run.folder, **record_of(run))


@singledispatch
def record_of(run: Run) -> dict[str, object]:
    """Give what must be saved beside the tensors; other kinds of runs register theirs."""
    config = run.config
    return dict(
        backbone={
            "name": config.model,
            "checkpoint": config.checkpoint,
            "pretrained": config.pretrained,
            "image_size": config.image_size,
            "seed": config.seed,
            "head_init": config.head_made,
        },
        preprocessing=run.preprocessing.to_dict(),
        augment=config.augment,
        classes=list(run.dataset.classes),
        targets=describe(run.targets),
    )

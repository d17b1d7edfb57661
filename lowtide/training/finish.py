"""The end of a run: test the model, save the adapter, write the summary."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ..paths import write_text
from .environment import environment
from .kept import accuracy_at, drop_kept
from .owner import CHECKPOINT, SUMMARY
from .prepare import Run
from .scoring import accuracy_of, confusion_of
from .summary import (
    SCHEMA,
    Confused,
    DataSummary,
    Planned,
    RunOptions,
    RunSummary,
)


def finish(run: Run, model: Any) -> RunSummary:
    """Test the kept epoch's model, save adapter and summary, drop the training checkpoint."""
    confusion = confusion_of(run, model, () if run.config.skip_test else run.dataset.test)
    if run.accelerator.device.type == "cuda":
        run.measured_bytes = torch.cuda.max_memory_allocated()
    summary = summarise(run, confusion)
    if run.main:
        save_adapter(run)
        write_text(run.folder / SUMMARY, json.dumps(summary.to_dict(), indent=2) + "\n")
        (run.folder / CHECKPOINT).unlink(missing_ok=True)
        drop_kept(run.folder)
    if run.features:
        run.features.drop()
    return summary


def summarise(run: Run, confusion: Tensor) -> RunSummary:
    """Gather what is reported of a finished run; `confusion` counts its test images `(K, K)`."""
    trained, total = run.tuned.trainable_counts()
    kept = len(run.history) if run.kept_epoch is None else run.kept_epoch
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
        start_accuracy=run.start_accuracy,
        history=tuple(run.history),
        kept_epoch=kept,
        val_accuracy=accuracy_at(run, kept) if run.dataset.val else None,
        test_accuracy=accuracy_of(confusion),
        test_confusion=tuple(
            Confused(true, predicted, int(confusion[true, predicted]))
            for true, predicted in confusion.nonzero().tolist()
        ),
        environment=environment(run.accelerator.device, run.accelerator.num_processes),
    )


def save_adapter(run: Run) -> None:
    """Save what trained, with all that is needed to use it: backbone, images, classes."""
    config = run.config
    run.tuned.save_pretrained(
        run.folder,
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
    )

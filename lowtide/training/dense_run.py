"""A run of a dense task: its data, its model, its batches and its scores, for the one loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor, nn

from ..data import Preprocessing, Sample
from ..dense.plans import plan_task
from ..dense.pyramid import backbone_path
from ..dense.results import Predicted
from ..dense.scores import Scores
from ..dense.sizes import refuse_size
from ..dense.tasks import TASKS, DenseTask
from ..dense.tasks.kind import Target
from ..errors import InputError
from ..extras import extra
from ..planning.simulate import set_up_step
from ..tuning.applying import apply
from ..tuning.tuned import Tuned
from .config import RunConfig
from .decided import refuse_blind
from .dense_data import Collate, Described, Together, Transformed, read_dense
from .examples import find_examples, image_score, write_examples
from .finish import Scored, record_of, scores_on
from .prepare import Load, Run
from .scoring import score_of
from .start import accelerate, pretrained

NEEDED = ("segmentation_models_pytorch", "torchmetrics", "pycocotools")
"""What the extra `dense` installs."""


@dataclass
class DenseRun(Run):
    """A run of a dense task in progress.

    Attributes:
        targets: The task.
        dataset: What it learns from.
    """

    targets: DenseTask  # type: ignore[assignment]
    dataset: Described

    @property
    def notes(self) -> list[str]:
        """Warnings about the run before it starts, a sentence each."""
        own = "a detector's losses are means over the boxes of each process's images"
        return super().notes + [own] * (self.processes > 1 and self.config.task != "segment")

    @property
    def begins_trained(self) -> bool:
        """No: a decoder or heads start at random, so there is no way back."""
        return False

    def _stays_decoded(self) -> bool:
        return False

    def _loaded(self, load: Load, samples: tuple[Sample, ...], training: bool) -> Iterable[Any]:
        task = self.targets
        source = Transformed(
            self.dataset, Together(task.transform(training)), training and task.random
        )
        return load(samples, source, workers=self.workers, cache=source, collate=Collate(task))


def prepare_dense(config: RunConfig, folder: Path) -> DenseRun:
    """Read the data, plan the memory, make and tune the model.

    Args:
        config: What to do.
        folder: Where the run will leave its files.

    Returns:
        The run, nothing learnt and nothing written yet.
    """
    for library in NEEDED:  # before anything is learnt that could not be scored
        extra(library, "dense")
    dataset = read_dense(config)
    refuse_blind(config, validated=bool(dataset.val))
    accelerator = accelerate(config)
    body = pretrained(config)
    preprocessing = replace(
        Preprocessing.of(body).normalized(config.normalize), bits=dataset.folder.bits
    )
    task = task_of(config, dataset.folder.classes, preprocessing)
    refuse_size(body, task.size, config.model)
    planned = plan_task(task, body, config.method, config)
    tuned = tuned_for(task, body, config)
    set_up_step(tuned, config).train()
    return DenseRun(
        config, folder, dataset, preprocessing, task, tuned, accelerator, planned, False
    )


def task_of(config: RunConfig, classes: tuple[str, ...], preprocessing: Preprocessing) -> DenseTask:
    """Make the task of a run.

    Args:
        config: The run.
        classes: Names of its classes.
        preprocessing: What the backbone's weights want.

    Returns:
        The task.

    Raises:
        InputError: The backbone takes grey or oblong images.
    """
    height, width = preprocessing.size
    if preprocessing.channels != 3 or height != width:
        raise InputError(
            f"task {config.task} runs on square RGB images, and {config.model} takes"
            f" {preprocessing.channels} x {height} x {width}: choose another model"
        )
    return TASKS[config.task](
        classes, height, preprocessing.mean, preprocessing.std, config, config.smoothing
    )


def tuned_for(task: DenseTask, body: nn.Module, config: RunConfig) -> Tuned:
    """Build the model around a backbone and put the run's method in place.

    Args:
        task: The task.
        body: The backbone.
        config: The run.

    Returns:
        The tuned model; what is not the backbone trains whole.
    """
    model = task.model(body)
    return apply(model, config.method, backbone=backbone_path(model))


def answers_of(
    task: DenseTask,
    model: nn.Module,
    dataset: Described,
    samples: tuple[Sample, ...],
    batch_size: int,
) -> Iterator[tuple[Path, Predicted, Target]]:
    """Predict for images at their own size.

    Args:
        task: The task.
        model: The model; put into evaluation.
        dataset: The labels.
        samples: Which images.
        batch_size: Images per forward pass.

    Yields:
        The image, what was predicted, and what is labelled.
    """
    model.eval()
    for start in range(0, len(samples), batch_size):
        some = samples[start : start + batch_size]
        items = [dataset.item(s.path) for s in some]
        found = task.predict(model, [image.as_subclass(Tensor) for image, _ in items])
        for sample, predicted, (_, target) in zip(some, found, items, strict=True):
            yield sample.path, predicted, target


def _run_scores(
    run: DenseRun, samples: tuple[Sample, ...], ranked: list[tuple[float, Path]] | None = None
) -> Scores:
    """Score images over all processes; with a list, note what each of them scores alone."""
    if not samples:
        return Scores(None)
    task, scorer = run.targets, run.targets.scorer()
    mine = samples[run.accelerator.process_index :: run.processes]
    # The model itself: a wrapped one would wait for processes that have fewer images.
    for path, predicted, target in answers_of(
        task, run.tuned, run.dataset, mine, run.config.batch_size
    ):
        scorer.update(predicted, target)
        if ranked is not None and (alone := image_score(task, predicted, target)) is not None:
            ranked.append((alone, path))
    if run.processes > 1:
        scorer.gather()
        if ranked is not None:
            ranked[:] = gather_object(ranked)
    return scorer.compute()


@score_of.register
def _score(run: DenseRun, model: nn.Module, samples: tuple[Sample, ...]) -> float | None:
    return _run_scores(run, samples).main


@scores_on.register
def _scores(run: DenseRun, model: nn.Module, samples: tuple[Sample, ...]) -> Scored:
    ranked: list[tuple[float, Path]] = []
    found = _run_scores(run, samples, ranked)

    def leave(folder: Path) -> None:
        kept = find_examples(run.targets, run.tuned, run.dataset, ranked, found.curves)
        write_examples(kept, folder)

    by_class = {name: _defined(values) for name, values in found.by_class.items()}
    return Scored(_defined(found.metrics), by_class=by_class, leave=leave)


def _defined(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if value is not None}


@record_of.register
def _record(run: DenseRun) -> dict[str, object]:
    return {
        "dense": {
            "task": run.config.task,
            "classes": list(run.targets.names),
            "preprocessing": run.preprocessing.to_dict(),
        }
    }

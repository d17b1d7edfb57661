"""The summary of a finished run: `summary.json`, every field with its type.

A file may be anybody's: what is not as it should be is refused by its path. Files of every version
open; a field that is newer than a file has its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from ..errors import InputError, shown
from ..paths import read_json
from ..targets import Targets
from ..values import Count, Within
from .records import Misfit, Record
from .run_options import RunOptions as RunOptions

SCHEMA = 1
"""Version of the file; 0 is that of files which say none."""

Whole = Annotated[int, Within(0, 10**18)]
Number = Annotated[float, Within(0, 1e18)]
Loss = Annotated[float, Within(0, 1e39)]
"""A float32 may hold any of them."""
Accuracy = Annotated[float, Within(0, 1)]
Score = Annotated[float, Within(-1e39, 1e39)]
"""What a task is scored by: a share of 1, or an error in the units of a number."""


@dataclass(frozen=True, kw_only=True)
class DataSummary(Record):
    """The data of a run, from `Dataset.describe`.

    Attributes:
        format: The kind of source.
        train: Images learnt from.
        val: Images validated on.
        test: Images tested on.
        classes: Names of the classes, in the order of their numbers.
        fingerprint: Hash of which files carry which class in which split.
        notes: How the splits came about.
        skipped: Images that cannot be read.
        bits: Bits of its 16-bit pixels; None in files that are older than that.
    """

    format: str
    train: Whole
    val: Whole
    test: Whole
    classes: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    bits: Whole | None = None


@dataclass(frozen=True, kw_only=True)
class Planned(Record):
    """The planned memory of a run, from `Plan.to_dict`.

    Attributes:
        trainable_parameters: Parameters that train.
        total_parameters: All parameters.
        peak_bytes: Planned peak of a step.
        parts: The same bytes by what they are.
        work: What a step computes.
        notes: What else to know of the step.
    """

    trainable_parameters: Whole
    total_parameters: Whole
    peak_bytes: Whole
    parts: Mapping[str, Whole]
    work: Mapping[str, Number]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Epoch(Record):
    """The record of an epoch; a line of `log.jsonl`.

    Attributes:
        epoch: Its number, from 1.
        train_loss: Mean loss of its updates.
        val_accuracy: Accuracy on the validation images; None without any, and of other tasks.
        val_score: Score of another task than classify on them, which is the summary's `metric`.
        seconds: How long it took.
    """

    epoch: Count
    train_loss: Loss | None
    val_accuracy: Accuracy | None
    val_score: Score | None = None
    seconds: Number

    @property
    def validated(self) -> float | None:
        """The score on the validation images, whatever the task; higher is better."""
        return self.val_accuracy if self.val_score is None else self.val_score


class Confused(NamedTuple):
    """Test images of one class that were taken for one class, itself or another."""

    true: Whole
    predicted: Whole
    images: Whole


@dataclass(frozen=True, kw_only=True)
class Environment(Record):
    """The machine and the versions of a run; None is not known.

    Attributes:
        python: Version of Python.
        lowtide: Version of lowtide.
        torch: Version of torch.
        timm: Version of timm.
        commit: The commit of the checkout that lowtide ran from, with `+` where files differed.
        machine: Kind of processor.
        device: Where the run computed.
        device_name: Name of that device.
        threads: Threads of torch.
        processes: Processes that shared the run.
        finished: When it ended, in UTC.
        folder: Where the command was given, which relative paths start from.
    """

    python: str | None = None
    lowtide: str | None = None
    torch: str | None = None
    timm: str | None = None
    commit: str | None = None
    machine: str | None = None
    device: str | None = None
    device_name: str | None = None
    threads: Whole | None = None
    processes: Count = 1
    finished: str | None = None
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunSummary(Record):
    """The summary of a finished run.

    Attributes:
        schema: Version of the file.
        config: The run's options.
        data: The images.
        preprocessing: How images became inputs, as `Preprocessing.to_dict` says it.
        trainable_parameters: Parameters that trained, the classifier included.
        total_parameters: All parameters.
        planned: The plan of a step.
        measured_peak_bytes: The run's own peak; None where it was not measured.
        step_seconds: Median time of an update; None where none was timed.
        start_accuracy: Accuracy on the validation images before the first update, where the
            classifier started at a probe or the start could be kept.
        history: One record per epoch.
        start_score: The same of another task than classify.
        kept_epoch: The epoch whose model was tested and saved, 0 for the start; None in files that
            are older than that, which kept the last.
        kept_share: How far from the start to that epoch the model was that was tested and saved; 1
            is the epoch's own, 0 the start.
        val_accuracy: That of the epoch that was kept; None without validation images, and of other
            tasks.
        val_score: That of the epoch that was kept, of another task than classify.
        test_accuracy: Accuracy on the test images; None where they were left alone, and of other
            tasks.
        metric: The score that is followed and chosen by.
        val_scores: Every score of the final model on the validation images, by name; None in files
            that are older than that.
        test_scores: The same on the test images.
        test_class_scores: Of a dense task, scores on the test images by name and class.
        temperature: What logits are divided by for calibrated probabilities, fitted on the
            validation images; None without any, and of other tasks than classify.
        targets: What else must be known of what was learnt, such as mean and deviation of numbers.
        test_confusion: How many test images of which class were taken for which, zeros left out;
            None in files that are older than that.
        environment: Where and with what it was made.
    """

    schema: Annotated[int, Within(0, SCHEMA)] = 0
    config: RunOptions
    data: DataSummary
    preprocessing: Mapping[str, object]
    trainable_parameters: Whole
    total_parameters: Whole
    planned: Planned
    measured_peak_bytes: Whole | None = None
    step_seconds: Number | None = None
    start_accuracy: Accuracy | None = None
    start_score: Score | None = None
    history: tuple[Epoch, ...]
    kept_epoch: Whole | None = None
    kept_share: Annotated[float, Within(0, 1)] = 1.0
    val_accuracy: Accuracy | None
    val_score: Score | None = None
    test_accuracy: Accuracy | None
    metric: str = "accuracy"
    val_scores: Mapping[str, Score] | None = None
    test_scores: Mapping[str, Score] | None = None
    test_class_scores: Mapping[str, Mapping[str, Score]] | None = None
    temperature: Number | None = None
    targets: Mapping[str, object] | None = None
    test_confusion: tuple[Confused, ...] | None = None
    environment: Environment

    def __post_init__(self) -> None:
        classes = len(self.data.classes)
        for i, row in enumerate(self.test_confusion or ()):
            if max(row.true, row.predicted) >= classes:
                raise Misfit(f"test_confusion.{i}", f"of {classes} classes", list(row))

    @property
    def started(self) -> float | None:
        """`metric` on the validation images before the first update."""
        return self.start_accuracy if self.start_score is None else self.start_score

    @property
    def validated(self) -> float | None:
        """`metric` on the validation images of the epoch that was kept; higher is better."""
        return self.val_accuracy if self.val_score is None else self.val_score

    @property
    def tested(self) -> float | None:
        """`metric` on the test images; None where they were left alone."""
        return (self.test_scores or {}).get(self.metric, self.test_accuracy)


def scored(which: str, targets: Targets, score: float | None) -> dict[str, Any]:
    """Name a score's field: accuracy has one of its own, that of every earlier version.

    Args:
        which: `start`, `val`, the first word of the fields.
        targets: Their metric.
        score: Its value.

    Returns:
        The values of both fields.
    """
    accuracy = targets.metric == "accuracy"
    return {
        f"{which}_accuracy": score if accuracy else None,
        f"{which}_score": None if accuracy else score,
    }


def read_summary(path: Path) -> RunSummary:
    """Read the summary of a finished run.

    Args:
        path: The file.

    Returns:
        The summary.

    Raises:
        InputError: The file cannot be read, or something is missing or is not of its kind, or the
            file is of a version that is not known yet.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "config" not in content:
        raise InputError(f"{path} was not left by lowtide train")
    schema = content.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise InputError(
            f"{path} was left by a newer lowtide: its schema is {shown(schema)}, and this version"
            f" reads those up to {SCHEMA}"
        )
    try:
        return RunSummary.from_dict(content)
    except InputError as e:
        raise InputError(f"{path} is damaged: {e}") from e

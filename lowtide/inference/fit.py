"""Fine-tune from Python: one call, and an object that classifies images."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.method import Method
from ..dense.results import answer_of
from ..errors import InputError, shown
from ..paths import path_of, refuse_unwritable
from ..training.callbacks import Callback
from ..training.config import RunConfig
from ..training.loop import train
from ..training.options import config_of
from ..training.owner import free_folder
from ..training.summary import RunSummary
from ..tuning.adapter_files import describe
from ..tuning.tuned import Tuned
from .dense import DenseModel, is_dense, open_dense, predict_dense
from .evaluate import Trained, open_run
from .evaluate import predict as answers_to
from .predictions import THRESHOLD, images_in


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
        folder: Its folder, which the commands take.
        summary: What `summary.json` says.
    """

    folder: Path
    summary: RunSummary

    @functools.cached_property
    def trained(self) -> Trained | DenseModel:
        """The model with its pre-processing and class names, read from the folder at first use.

        The run's own copy is gone by then: what answers is what was saved.
        """
        opened = open_dense if is_dense(self.folder) else open_run
        return opened(self.folder, device=str(self.summary.config.extra.get("device", "auto")))

    @property
    def model(self) -> Tuned:
        """The tuned model, in eval mode."""
        trained = self.trained
        tuned: Tuned = trained.model if isinstance(trained, DenseModel) else trained.tuned
        return tuned

    def predict(
        self,
        images: str | Path | Sequence[str | Path],
        *,
        top: int = 5,
        batch_size: int = 32,
        threshold: float = THRESHOLD,
    ) -> list[dict[str, Any]]:
        """Predict for images.

        Args:
            images: A file, a folder of them, or several of either.
            top: How many names to give, best first.
            batch_size: Images per forward pass.
            threshold: Of tasks of objects, the least score of one that is told.

        Returns:
            What `lowtide predict` prints, one mapping per image.

        Raises:
            UnreadableImage: A file is missing or no image.
        """
        given = [images] if isinstance(images, str | Path) else images
        paths, _ = images_in([Path(path) for path in given])
        trained = self.trained
        if not isinstance(trained, DenseModel):
            return list(answers_to(trained, paths, top=top, batch_size=batch_size))
        return [
            answer_of(predicted, str(path), trained.task.names, threshold)
            for path, _, predicted in predict_dense(trained, paths, batch_size)
        ]

    def __repr__(self) -> str:
        """Say where it lies and what it reached."""
        score = self.summary.tested if self.summary.tested is not None else self.summary.validated
        said = "" if score is None else f", {self.summary.metric} {score:.4f}"
        return f"FitResult({str(self.folder)!r}{said})"


def fit(
    model: str,
    data: str | Path,
    method: str | Mapping[str, object] | Method = RunConfig.method,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    **options: object,
) -> FitResult:
    """Fine-tune a backbone on images, as `lowtide train` does.

    Args:
        model: timm's name of the backbone.
        data: Folder of images, list of `path label`, or table.
        method: What trains: a name, a name with options such as `{"name": "lora", "rank": 4}`, or a
            method. By default LoRA on every linear map of the blocks.
        output: Run folder to make; by default the next free `runs/DATA-METHOD`.
        resume: Continue the run in `output`.
        overwrite: Replace the run in `output`.
        callbacks: Told of every update, every epoch and the end.
        **options: Any other option of `lowtide train`, with underscores: `epochs=5`,
            `policy="tight"`, `task="multilabel"`.

    Returns:
        The run.

    Raises:
        InputError: An option does not fit, or the folder already holds a run.
    """
    if not isinstance(model, str):
        raise InputError(
            f"fit needs timm's name of a backbone, which its run folder can name, not"
            f" {shown(type(model).__name__)}; lowtide.apply takes a module"
        )
    described = describe(method) if isinstance(method, Method) else method
    config = config_of({"model": model, "data": str(data), "method": described, **options})
    config.refuse_crowd()
    if resume and output is None:
        raise InputError("resume needs output, the folder of the run to continue")
    folder = (
        path_of("output", output) if output is not None else free_folder(config.data, config.method)
    )
    refuse_unwritable(folder, folder=True)
    summary = train(config, folder, continues=resume, overwrite=overwrite, callbacks=callbacks)
    return FitResult(folder, summary)

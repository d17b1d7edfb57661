"""The backbone and its adapters in one process, and how a batch of different tasks is answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, LowtideError
from ..inference.evaluate import backbone_of
from ..multi_adapter.model import MultiAdapter
from .tasks import Task, task_of


class Predictor:
    """Answers a batch of images, each for its own task.

    What it is asked is a mapping: `load` is a task's name, folder and hash, which is loaded if it
    is not; `live` are the names of all tasks, others are forgotten; `pixels` is the image, None
    where nothing is to be answered.

    Attributes:
        model: The backbone and the adapters.
        tasks: What is loaded, by name.
    """

    def __init__(
        self, runs: Mapping[str, Path], checkpoint: Path | None, top: int, device: str
    ) -> None:
        """Load the backbone once, and the adapters.

        Args:
            runs: Folders by name.
            checkpoint: Where the backbone's weights are now, if not where they were.
            top: Classes of an answer.
            device: Where to.
        """
        first = task_of(*next(iter(runs.items())))
        dtype = first.config.frozen_dtype or "fp32"
        backbone = backbone_of(first.folder, checkpoint, dtype)
        self.model, self.top = MultiAdapter(backbone.to(device)), top
        self.tasks: dict[str, Task] = {}
        for name, folder in runs.items():
            self.load(name, folder)
        self.place = torch.device(device)

    def load(self, name: str, folder: Path, content: str | None = None) -> None:
        """Load an adapter, unless it is loaded; one of the same name is replaced.

        Args:
            name: Its task's name.
            folder: The folder of its run.
            content: Hash of its tensors; None for whatever is there.

        Raises:
            InputError: Its files are no longer those.
        """
        if name in self.tasks and content in (None, self.tasks[name].content):
            return
        task = task_of(name, folder)
        if content not in (None, task.content):
            raise InputError(f"the files of task {name} have changed; remove it and add it again")
        if name in self.tasks:
            self.model.delete_adapter(name)
            del self.tasks[name]
        self.model.load_adapter(folder, name)
        self.tasks[name] = task

    def keep(self, live: Iterable[str]) -> None:
        """Unload all tasks but some.

        Args:
            live: Names of those that stay.
        """
        live = set(live)
        for name in [n for n in self.tasks if n not in live]:
            self.model.delete_adapter(name)
            del self.tasks[name]

    def predict(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
        """Answer a batch; one that cannot be answered leaves the others alone.

        Args:
            batch: What is asked.

        Returns:
            Classes, or an error, of each.
        """
        answers: list[dict[str, object]] = [{} for _ in batch]
        ready: dict[tuple[int, ...], list[int]] = {}
        for i, asked in enumerate(batch):
            try:
                if asked["load"] is not None:
                    self.load(*asked["load"])
                if asked["pixels"] is not None:
                    ready.setdefault(asked["pixels"].shape, []).append(i)
            except LowtideError as e:
                answers[i] = {"error": str(e)}
        for at in ready.values():
            for i, answer in zip(at, self._classify([batch[i] for i in at]), strict=True):
                answers[i] = answer
        self.keep(batch[-1]["live"])
        return answers

    def _classify(self, asked: list[Mapping[str, Any]]) -> list[dict[str, object]]:
        tasks = [self.tasks[a["load"][0]] for a in asked]
        images = [
            t.transform.after_cache(torch.from_numpy(a["pixels"]))
            for t, a in zip(tasks, asked, strict=True)
        ]
        logits = self.model.mixed(torch.stack(images).to(self.place), [t.name for t in tasks])
        return [_answer(row, task, self.top) for row, task in zip(logits, tasks, strict=True)]


def _answer(output: torch.Tensor, task: Task, top: int) -> dict[str, object]:
    output = output.float().cpu()
    if not output.isfinite().all():
        return {"error": f"the answer of task {task.name} is no number"}
    return task.targets.answer(output, top)

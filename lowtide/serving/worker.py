"""What runs in a worker's process: the backbone, the adapters, and a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from litserve import LitAPI

from ..errors import InputError, LowtideError
from ..inference.evaluate import backbone_of
from ..multi_adapter.model import MultiAdapter
from .tasks import Task, task_of

PATH = "/internal"
"""LitServe's address of it, which is not served: requests come by `app`, checked."""


class AdapterWorker(LitAPI):
    """Answers a batch of images, each for its own task.

    What it is asked is a mapping: `load` is a task's name, folder and hash, which is loaded if it
    is not; `live` are the names of all tasks, others are forgotten; `pixels` is the image, None
    where nothing is to be answered.
    """

    def __init__(
        self, runs: Mapping[str, Path], checkpoint: Path | None, top: int, **batching: Any
    ) -> None:
        """Say what is to be loaded.

        Args:
            runs: Folders by name.
            checkpoint: Where the backbone's weights are now, if not where they were.
            top: Classes of an answer.
            **batching: LitServe's options.
        """
        super().__init__(api_path=PATH, **batching)
        self.runs, self.checkpoint, self.top = dict(runs), checkpoint, top

    def setup(self, device: str) -> None:
        """Load the backbone once, and the adapters.

        Args:
            device: Where to.
        """
        first = task_of(*next(iter(self.runs.items())))
        dtype = first.config.frozen_dtype or "fp32"
        backbone = backbone_of(first.folder, self.checkpoint, dtype)
        self.model = MultiAdapter(backbone.to(device))
        self.tasks: dict[str, Task] = {}
        for name, folder in self.runs.items():
            self._load(name, folder, None)
        self.place = torch.device(device)

    def decode_request(self, request: Any, **kwargs: Any) -> Any:
        """Take what `app` asks as it is.

        Args:
            request: A mapping.
            **kwargs: LitServe's.

        Returns:
            The same.
        """
        return request

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Leave requests apart.

        Args:
            inputs: The requests.

        Returns:
            The same.
        """
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Leave answers apart.

        Args:
            output: The answers.

        Returns:
            The same.
        """
        return output

    def encode_response(self, output: Any, **kwargs: Any) -> Any:
        """Give an answer to `app` as it is.

        Args:
            output: The answer.
            **kwargs: LitServe's.

        Returns:
            The same.
        """
        return output

    def predict(self, x: list[Mapping[str, Any]], **kwargs: Any) -> list[dict[str, Any]]:
        """Answer a batch; one that cannot be answered leaves the others alone.

        Args:
            x: What is asked.
            **kwargs: LitServe's.

        Returns:
            Classes, or an error, of each.
        """
        answers: list[dict[str, Any]] = [{} for _ in x]
        ready: dict[tuple[int, ...], list[int]] = {}
        for i, asked in enumerate(x):
            try:
                if asked["load"] is not None:
                    self._load(*asked["load"])
                if asked["pixels"] is not None:
                    ready.setdefault(asked["pixels"].shape, []).append(i)
            except LowtideError as e:
                answers[i] = {"error": str(e)}
        for at in ready.values():
            for i, answer in zip(at, self._classify([x[i] for i in at]), strict=True):
                answers[i] = answer
        self._forget(x[-1]["live"])
        return answers

    def _classify(self, asked: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        tasks = [self.tasks[a["load"][0]] for a in asked]
        images = [
            t.transform.after_cache(torch.from_numpy(a["pixels"]))
            for t, a in zip(tasks, asked, strict=True)
        ]
        logits = self.model.mixed(torch.stack(images).to(self.place), [t.name for t in tasks])
        return [_answer(row, task, self.top) for row, task in zip(logits, tasks, strict=True)]

    def _load(self, name: str, folder: Path, content: str | None) -> None:
        """Load an adapter, unless it is there; another one under its name goes."""
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

    def _forget(self, live: Any) -> None:
        for name in [n for n in self.tasks if n not in live]:
            self.model.delete_adapter(name)
            del self.tasks[name]


def _answer(output: torch.Tensor, task: Task, top: int) -> dict[str, Any]:
    output = output.float().cpu()
    if not output.isfinite().all():
        return {"error": f"the answer of task {task.name} is no number"}
    return task.targets.answer(output, top)

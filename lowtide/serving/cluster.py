"""The same tasks on a Ray cluster: Ray Serve runs the replicas, and shares requests among them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import InputError, shown
from ..values import Count, Ratio, read_fields
from .answering import Answering
from .limits import Limits
from .predictor import Predictor
from .tasks import Task, Tasks
from .upload import Pixels


@dataclass(frozen=True)
class _Settings(Limits):
    replicas: Count = 1
    checkpoint: str | None = None
    top: Count = 5
    batch_size: Count = 32
    batch_wait: Ratio = 0.005


class Adapters:
    """One replica: a backbone, its adapters, and the addresses of `lowtide serve`.

    Which tasks there are is Ray Serve's `user_config`, `{"runs": {name: folder}}`: a deployment
    with another one has each replica load what is new and forget what is gone; the backbone stays.
    """

    def __init__(
        self, checkpoint: str | None, top: int, limits: Limits, batch_size: int, batch_wait: float
    ) -> None:
        """Wait for the tasks.

        Args:
            checkpoint: Where the backbone's weights are now, if not where they were.
            top: Classes of an answer.
            limits: What a request may be.
            batch_size: Most images of a batch.
            batch_wait: Seconds to wait for a batch to fill.
        """
        self._checkpoint, self._top, self._limits = checkpoint, top, limits
        self._predictor: Any = None  # until Ray says which tasks there are
        self._answering: Any = None
        self._lock = threading.Lock()

        @serve.batch(max_batch_size=batch_size, batch_wait_timeout_s=batch_wait)
        async def batched(asked: list[dict[str, object]]) -> list[dict[str, object]]:
            return await asyncio.to_thread(self._predict, asked)

        self._batched: Any = batched

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Serve other tasks; Ray calls it first, and when `user_config` changes.

        Args:
            config: `runs`, folders by name.
        """
        runs = {name: Path(folder) for name, folder in config["runs"].items()}
        tasks = Tasks(runs, None)
        with self._lock:
            if self._predictor is None:
                checkpoint = Path(self._checkpoint) if self._checkpoint else None
                device = "cuda" if torch.cuda.is_available() else "cpu"
                self._predictor = Predictor(runs, checkpoint, self._top, device)
                self._answering = Answering(tasks, self._limits, self._ask)
            for task in tasks.all:
                self._predictor.load(task.name, task.folder, task.content)
            self._predictor.keep(runs)
            self._answering.tasks = tasks

    async def __call__(self, request: Request) -> Response:
        """Answer a request.

        Args:
            request: The request.

        Returns:
            The page, the tasks, this replica's counters, or the classes of images.
        """
        answering: Answering = self._answering
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        match request.method, *path.strip("/").split("/"):
            case "GET", "":
                return answering.page()
            case "GET", "tasks":
                return answering.list_tasks()
            case "GET", "metrics":
                return answering.metrics()
            case "POST", "predict", task:
                return await answering.guarded(answering.predict(task, request))
        return JSONResponse({"error": "there is no such address"}, 404)

    async def _ask(self, task: Task, pixels: Pixels) -> dict[str, object]:
        live = tuple(t.name for t in self._answering.tasks.all)
        load = (task.name, task.folder, task.content)
        asked = {"load": load, "pixels": pixels, "live": live}
        answer: dict[str, object] = await self._batched(asked)
        return answer

    def _predict(self, asked: list[dict[str, object]]) -> list[dict[str, object]]:
        with self._lock:
            answers: list[dict[str, object]] = self._predictor.predict(asked)
            return answers


def application(args: Mapping[str, Any]) -> serve.Application:
    """Make the application that Ray Serve runs.

    Args:
        args: `runs`, folders by name, which every node of the cluster can read; and optionally
            `replicas`, `checkpoint`, `top`, `batch_size`, `batch_wait`, the limits of a request,
            and `actor`, Ray's options of a replica such as `{"num_gpus": 1}`.

    Returns:
        The application, for `serve.run`, `serve run` and `serve deploy`.

    Raises:
        InputError: There are no runs, or an argument is unknown or not what it may be.
    """
    given = dict(args)
    runs, actor = given.pop("runs", None), given.pop("actor", {})
    if not isinstance(runs, Mapping) or not runs:
        raise InputError("expected runs, folders by name")
    if not isinstance(actor, Mapping):
        raise InputError(f"actor must be Ray's options of a replica by name, not {shown(actor)}")
    settings = _Settings(**read_fields(_Settings, given))
    deployment: Any = serve.deployment(
        Adapters,
        num_replicas=settings.replicas,
        ray_actor_options=dict(actor),
        max_ongoing_requests=settings.max_waiting,
        user_config={"runs": {n: str(Path(f).resolve()) for n, f in runs.items()}},
    )
    application: serve.Application = deployment.bind(
        checkpoint=settings.checkpoint,
        top=settings.top,
        limits=settings,
        batch_size=settings.batch_size,
        batch_wait=settings.batch_wait,
    )
    return application

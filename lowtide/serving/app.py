"""The addresses of the server, and its way to LitServe's workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import socket
from typing import Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse, Response
from litserve import LitServer
from litserve.server import RegularRequestHandler
from starlette.concurrency import run_in_threadpool

from ..errors import LowtideError
from .answering import Answering
from .limits import Limits, Refused
from .tasks import Task, Tasks
from .upload import Pixels
from .worker import PATH, AdapterWorker

DRAIN = 60
"""Seconds that requests in flight have to be answered once the server is told to stop."""
OWN = {"/", PATH}
"""Addresses of LitServe's that are not served: its greeting, and its way to a worker."""


class Listening(socket.socket):
    """A listening socket that stops accepting in all processes once one of them closes it.

    LitServe's other processes hold it too, and the kernel would go on taking connections for them.
    """

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self._same = socket.socket(
            fileno=os.dup(fileno)
        )  # an event loop may have closed the other by itself

    def close(self) -> None:
        """Make the kernel stop accepting connections."""
        with contextlib.suppress(OSError):
            self._same.shutdown(socket.SHUT_RDWR)
        super().close()


class Server(LitServer):
    """LitServe's server, which stops accepting connections before it stops answering."""

    def _start_server(
        self,
        port: object,
        count: int,
        level: object,
        sockets: Any,
        *rest: object,
        **more: object,
    ) -> Any:
        listening = [Listening(s.detach()) for s in sockets]
        return super()._start_server(port, count, level, listening, *rest, **more)

    def drain(self) -> None:
        """Stop taking requests, and answer those that were taken."""
        serving = [p for p in multiprocessing.active_children() if p.name.startswith("LitServer-")]
        for child in serving:
            child.terminate()
        for child in serving:
            child.join(DRAIN)


class Front:
    """The addresses, and the way of an image to LitServe's workers and back."""

    def __init__(self, worker: AdapterWorker, tasks: Tasks, limits: Limits, **options: Any) -> None:
        """Make the server.

        Args:
            worker: What runs in the workers' processes.
            tasks: The tasks.
            limits: What a request may be.
            **options: LitServe's.
        """
        self._answering, self._tasks = Answering(tasks, limits, self._ask), tasks
        self._changing = asyncio.Lock()
        self.server = Server(worker, timeout=False, disable_openapi_url=True, **options)
        self._handler = RegularRequestHandler(worker, self.server)
        app, allowed = self.server.app, [Depends(self.server.setup_auth())]
        app.router.routes[:] = [r for r in app.router.routes if getattr(r, "path", "") not in OWN]
        for path, method, answer, dependencies in (
            ("/", "GET", self.page, []),
            ("/tasks", "GET", self.list_tasks, allowed),
            ("/metrics", "GET", self.metrics, []),
            ("/predict/{task}", "POST", self.predict, allowed),
            ("/tasks/{task}", "PUT", self.add_task, allowed),
            ("/tasks/{task}", "DELETE", self.remove_task, allowed),
        ):
            app.add_api_route(
                path, answer, methods=[method], dependencies=dependencies, response_model=None
            )

    async def page(self) -> Response:
        """Give the page on which a person drops an image."""
        return self._answering.page()

    async def list_tasks(self) -> Response:
        """Describe the tasks."""
        return self._answering.list_tasks()

    async def metrics(self) -> Response:
        """Give the counters."""
        return self._answering.metrics()

    async def predict(self, task: str, request: Request) -> Response:
        """Classify the images of a request."""
        return await self._answering.guarded(self._answering.predict(task, request))

    async def add_task(self, task: str, request: Request) -> Response:
        """Load an adapter and serve it."""
        return await self._answering.guarded(self._add(task, request))

    async def remove_task(self, task: str) -> Response:
        """Stop serving a task."""
        return await self._answering.guarded(self._remove(task))

    async def _ask(
        self, task: Task | None, pixels: Pixels | None = None, *coming: str
    ) -> dict[str, Any]:
        """Have a worker answer, in a batch with whatever else waits."""
        live = (*(t.name for t in self._tasks.all), *coming)
        load = (task.name, task.folder, task.content) if task else None
        asked = {"load": load, "pixels": pixels, "live": live}
        answer: dict[str, Any] = await self._handler.handle_request(asked, dict)
        return answer

    async def _add(self, name: str, request: Request) -> Response:
        body = await self._answering.body(request)
        try:
            asked = json.loads(body) if body else {}
        except ValueError as e:
            raise Refused(400, 'the body is no JSON: expected {"folder": ...}') from e
        if not isinstance(asked, dict) or asked.keys() - {"folder"}:
            raise Refused(400, 'the body is {"folder": ...}, a path below --adapters')
        async with self._changing:
            task = await run_in_threadpool(self._tasks.found, name, asked.get("folder"))
            answer = await self._ask(task, None, name)
            if "error" in answer:
                raise Refused(400, self._tasks.told(answer["error"]))
            self._tasks.add(task)
        return JSONResponse(task.described(), 201)

    async def _remove(self, name: str) -> Response:
        async with self._changing:
            task = self._tasks.remove(name)
            await self._ask(None)
        return JSONResponse(task.described())


def serve(front: Front, host: str, port: int) -> None:
    """Serve until told to stop; requests in flight are answered first.

    Args:
        front: The server.
        host: Address to listen on.
        port: Port.

    Raises:
        LowtideError: No worker could load the backbone and its adapters.
    """
    main = os.getpid()

    def drain(*_: object) -> None:
        if os.getpid() != main:
            raise SystemExit(0)
        front.server.drain()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, drain)
    front.server.uvicorn_graceful_timeout = DRAIN
    try:
        front.server.run(
            host=host,
            port=port,
            num_api_servers=1,
            log_level="warning",
            generate_client_file=False,
        )
    except RuntimeError as e:
        raise LowtideError(f"the server cannot start: {e}") from e

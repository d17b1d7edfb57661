"""Turn requests into responses: check them, ask the model, write its answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from .limits import Limits, Refused
from .metrics import Metrics
from .tasks import Task, Tasks
from .upload import Pixels, images_of, pixels_of

PAGE = Path(__file__).with_name("page.html")

Ask = Callable[[Task, Pixels], Awaitable[dict[str, Any]]]
"""Has one image answered, in a batch with whatever else waits."""


class Answering:
    """Checks requests, has their images answered one by one, and puts answers together.

    Attributes:
        tasks: The tasks that are served.
        limits: What a request may be.
    """

    def __init__(self, tasks: Tasks, limits: Limits, ask: Ask) -> None:
        """Begin with nothing waiting.

        Args:
            tasks: The tasks.
            limits: What a request may be.
            ask: What answers an image.
        """
        self.tasks, self.limits, self._ask = tasks, limits, ask
        self._metrics, self._waiting = Metrics(), 0

    def page(self) -> Response:
        """Give the page on which a person drops an image.

        Returns:
            HTML.
        """
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    def list_tasks(self) -> Response:
        """Describe the tasks.

        Returns:
            JSON.
        """
        return JSONResponse({"tasks": [task.described() for task in self.tasks.all]})

    def metrics(self) -> Response:
        """Give the counters.

        Returns:
            Prometheus' text.
        """
        return PlainTextResponse(self._metrics.text(self._waiting, len(self.tasks.all)))

    async def predict(self, name: str, request: Request) -> Response:
        """Answer the images of a request.

        Args:
            name: The task's name.
            request: The request.

        Returns:
            JSON.

        Raises:
            Refused: There is no such task, an image is none, too much waits, or no answer came.
        """
        task = self.tasks[name]
        reserved = self._reserve(1)
        try:
            body = await self.body(request)
            kind = request.headers.get("content-type", "")
            found = await run_in_threadpool(images_of, kind, body, self.limits)
            reserved += self._reserve(len(found) - 1)
            decoded = [
                await run_in_threadpool(pixels_of, n, content, task.transform, self.limits)
                for n, content in found
            ]
            answers = await asyncio.gather(*(self._ask(task, pixels) for pixels in decoded))
        finally:
            self._waiting -= reserved
        for answer in answers:
            if "error" in answer:
                raise Refused(500, self.tasks.told(answer["error"]))
        self._metrics.images[name] += len(found)
        named = [{"image": n, **a} for (n, _), a in zip(found, answers, strict=True)]
        return JSONResponse({"task": name, "predictions": named})

    async def guarded(self, answer: Awaitable[Response]) -> Response:
        """Turn a refusal into one line with its status, and count.

        Args:
            answer: What answers a request.

        Returns:
            Its response, or the refusal.
        """
        start = time.monotonic()
        try:
            response = await answer
        except Refused as e:
            wait = {"Retry-After": "1"} if e.status == 503 else None
            response = JSONResponse({"error": str(e)}, e.status, headers=wait)
        except HTTPException as e:
            response = JSONResponse({"error": str(e.detail)}, e.status_code)
        self._metrics.answered(response.status_code, time.monotonic() - start)
        return response

    async def body(self, request: Request) -> bytes:
        """Read a request's body.

        Args:
            request: The request.

        Returns:
            Its bytes.

        Raises:
            Refused: There are too many.
        """
        most, body = self.limits.max_bytes, bytearray()
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise Refused(413, f"the request has {length} bytes: expected at most {most}")
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise Refused(413, f"the request has more than {most} bytes")
        return bytes(body)

    def _reserve(self, images: int) -> int:
        """Take places among those that wait."""
        if self._waiting + images > self.limits.max_waiting:
            raise Refused(503, f"{self._waiting} images wait already; try again later")
        self._waiting += images
        return images

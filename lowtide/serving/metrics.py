"""Counters of a server, as Prometheus reads them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the bins of the latency's histogram."""


class Metrics:
    """Counts of requests by status, of images by task, and a histogram of seconds."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.images: Counter[str] = Counter()
        self._bins = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def answered(self, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            status: Its HTTP status.
            seconds: From its first byte to its answer.
        """
        self.statuses[status] += 1
        self._bins[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def text(self, waiting: int, tasks: int) -> str:
        """Write everything.

        Args:
            waiting: Images that wait or are being answered.
            tasks: Tasks that are served.

        Returns:
            Prometheus' text format.
        """
        lines = [
            "# TYPE lowtide_requests_total counter",
            *(f'lowtide_requests_total{{status="{s}"}} {n}' for s, n in self.statuses.items()),
            "# TYPE lowtide_images_total counter",
            *(f'lowtide_images_total{{task="{t}"}} {n}' for t, n in self.images.items()),
            "# TYPE lowtide_waiting_images gauge",
            f"lowtide_waiting_images {waiting}",
            "# TYPE lowtide_tasks gauge",
            f"lowtide_tasks {tasks}",
            "# TYPE lowtide_request_seconds histogram",
        ]
        total = 0
        for end, count in zip((*SECONDS, "+Inf"), self._bins, strict=True):
            total += count
            lines.append(f'lowtide_request_seconds_bucket{{le="{end}"}} {total}')
        lines += [
            f"lowtide_request_seconds_sum {self._sum}",
            f"lowtide_request_seconds_count {total}",
        ]
        return "\n".join(lines) + "\n"

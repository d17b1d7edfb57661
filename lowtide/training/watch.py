"""Watch a run: time, speed and memory, and its trackers."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from .decided import Decided
from .prepare import Run
from .time_limit import TimeLimit
from .trackers import Trackers


class Watch:
    """Counts images and seconds, tells trackers, and ends a run that is out of time."""

    def __init__(self, run: Run, limit: TimeLimit, log: Sequence[str]) -> None:
        """Begin.

        Args:
            run: What is watched; its finished epochs are known.
            limit: Of its time.
            log: Whom to tell, as `check_trackers` gave them.
        """
        self._run, self._limit, self._steps = run, limit, run.updates
        self._update = len(run.history) * self._steps
        self._longest, self._images, self._started = 0.0, 0, time.perf_counter()
        self._trackers = Trackers(
            run.accelerator, log, run.folder, run.config.to_dict(), self._update
        )

    def begin_epoch(self) -> None:
        """Start counting, or end a run whose next epoch would not end in time."""
        self._refuse_late(self._longest)
        self._images, self._started = 0, time.perf_counter()

    def step(self, optimizer: Optimizer, loss: float, images: int) -> str:
        """Count an update.

        Args:
            optimizer: Has just updated.
            loss: The loss before that.
            images: Images of the update, of all processes.

        Returns:
            Speed and memory, for people.
        """
        self._update += 1
        self._images += images
        self._trackers.log(self._update, loss=loss, lr=float(optimizer.param_groups[0]["lr"]))
        if self._run.processes == 1:  # several must end at the same update
            self._refuse_late(0.0)
        return self._told()

    def end_epoch(self) -> str:
        """Record the epoch at the end of the run's history.

        Returns:
            Speed, memory and the time that is left, for people.
        """
        run, record = self._run, self._run.history[-1]
        numbers = {k: v for k, v in record.to_dict().items() if isinstance(v, int | float)}
        peak = self._peak() / 2**20 or None
        self._trackers.log(self._update, **numbers, images_per_second=self._speed(), peak_mib=peak)
        self._longest = max(self._longest, time.perf_counter() - self._started)
        left = self._longest * (Decided.of(run.config).epochs - len(run.history))
        more = f", {datetime.timedelta(seconds=round(left))} left" if left else ""
        return self._told() + more

    def end(self) -> None:
        """Let trackers write what they hold."""
        self._trackers.end()

    def _refuse_late(self, seconds: float) -> None:
        late = not self._limit.leaves(seconds)
        if self._run.processes > 1:
            mine = torch.tensor(float(late), device=self._run.accelerator.device)
            late = bool(self._run.accelerator.reduce(mine, "sum"))
        if late:
            self._limit.stop(len(self._run.history), Decided.of(self._run.config).epochs)

    def _speed(self) -> float:
        return round(self._images / max(time.perf_counter() - self._started, 1e-9), 1)

    def _peak(self) -> int:
        on_gpu = self._run.accelerator.device.type == "cuda"
        return torch.cuda.max_memory_allocated() if on_gpu else self._run.measured_bytes

    def _told(self) -> str:
        planned = self._run.planned.peak_bytes / 2**20
        peak = self._peak() / 2**20
        measured = f"peak {peak:.0f} of {planned:.0f} MiB planned" if peak else ""
        return ", ".join(filter(None, (f"{self._speed():.0f} images/s", measured)))

"""Progress bars for people, nothing for pipes."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ..errors import printable
from ..targets.words import word
from .summary import Epoch


def note(text: str) -> None:
    """Print a remark that does not stop a command.

    Args:
        text: One line.
    """
    print(printable(f"lowtide: note: {text}"), file=sys.stderr, flush=True)


class Bar:
    """A progress bar on a terminal, and lines above it, which a pipe has too."""

    def __init__(self, before: str, after: str, shown: bool = True) -> None:
        """Lay the bar out.

        Args:
            before: What stands in front of it, as rich's text columns say it.
            after: What stands behind.
            shown: Whether this process reports.
        """
        self._console = Console(file=sys.stderr)
        self._bars = Bars(
            TextColumn(before),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn(after),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
            transient=True,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def line(self, text: str) -> None:
        """Print a line that stays.

        Args:
            text: The line.
        """
        self._console.print(text, highlight=False, soft_wrap=True)


class Progress(Bar):
    """One bar over all updates of a run, and one line per finished epoch."""

    def __init__(self, epochs: int, steps: int, shown: bool, metric: str = "accuracy") -> None:
        """Lay the bar out.

        Args:
            epochs: Epochs of the run.
            steps: Updates per epoch.
            shown: Whether this process reports.
            metric: Name of the score on validation images.
        """
        super().__init__(
            "{task.description}", "loss {task.fields[loss]:.3f}, {task.fields[more]}", shown
        )
        self._shown, self._steps, self._metric = shown, steps, word(metric)
        self._task = self._bars.add_task(
            f"{epochs} epochs", total=epochs * steps, loss=0.0, more=""
        )

    def step(self, loss: float, more: str = "") -> None:
        """Count one update.

        Args:
            loss: Its loss.
            more: Speed and memory.
        """
        self._bars.update(self._task, advance=1, loss=loss, more=more)

    def epoch(self, record: Epoch, more: str = "") -> None:
        """Report a finished epoch.

        Args:
            record: What `log.jsonl` says of it.
            more: Speed, memory and the time that is left.
        """
        self._bars.update(self._task, completed=record.epoch * self._steps)
        if self._shown:
            score = record.validated
            val = "" if score is None else f"  val {self._metric} {score:.3f}"
            self.line(
                f"epoch {record.epoch:3d}  loss {record.train_loss:.4f}{val}"
                f"  {record.seconds:.1f} s{f'  ({more})' if more else ''}"
            )

"""Progress of a search: a bar over the candidates for people, a line for each generation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from .evolve import Candidate, best_first


class Progress:
    """One bar over all candidates, and one line per generation."""

    def __init__(self, candidates: int) -> None:
        """Lay the bar out.

        Args:
            candidates: Of all generations together, at most.
        """
        self._console = Console(file=sys.stderr)
        self._bars = Bars(
            TextColumn("candidates"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("last {task.fields[last]:.3f}, best {task.fields[best]:.3f}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._best = float("-inf")
        self._task = self._bars.add_task("", total=candidates, last=0.0, best=0.0)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def step(self, score: float) -> None:
        """Count one candidate.

        Args:
            score: Its score.
        """
        self._best = max(self._best, score)
        self._bars.update(self._task, advance=1, last=score, best=self._best)

    def generation(self, done: Sequence[Sequence[Candidate]]) -> None:
        """Report the last generation.

        Args:
            done: All generations so far.
        """
        best = best_first([c for generation in done for c in generation])[0]
        last = [c.score for c in done[-1]]
        own = f"best {max(last):.3f}, mean {sum(last) / len(last):.3f}" if last else "no new one"
        self._console.print(
            f"generation {len(done)}  {len(last)} candidates, {own};"
            f" best so far {best.score:.3f} with {best.cost.trained:,} trained",
            highlight=False,
            soft_wrap=True,
        )

"""Progress of a search: a bar over the candidates for people, a line for each generation."""

from __future__ import annotations

from collections.abc import Sequence

from ..training.progress import Bar
from .evolve import Candidate, best_first


class Progress(Bar):
    """One bar over all candidates, and one line per generation."""

    def __init__(self, candidates: int) -> None:
        """Lay the bar out.

        Args:
            candidates: Of all generations together, at most.
        """
        super().__init__("candidates", "last {task.fields[last]:.3f}, best {task.fields[best]:.3f}")
        self._best = float("-inf")
        self._task = self._bars.add_task("", total=candidates, last=0.0, best=0.0)

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
        self.line(
            f"generation {len(done)}  {len(last)} candidates, {own};"
            f" best so far {best.score:.3f} with {best.cost.trained:,} trained"
        )

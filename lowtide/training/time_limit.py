"""A limit of a run's time, at which it stops where it can be resumed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from time import monotonic
from typing import NoReturn

from ..errors import InputError, LowtideError, shown

UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}


class OutOfTime(LowtideError):
    """A run has used its time; finished epochs are kept. The CLI exits 124, as timeout does."""


def parse_seconds(text: str) -> float:
    """Read a time.

    Args:
        text: Such as 90s, 30m, 2h, 1d or 1h30m.

    Returns:
        Seconds.

    Raises:
        InputError: It is no such time.
    """
    parts = re.fullmatch("".join(rf"(?:(\d{{1,6}}){unit})?" for unit in UNITS), text.strip())
    counts = [int(n or 0) for n in parts.groups()] if parts else [0] * len(UNITS)
    seconds = sum(n * each for n, each in zip(counts, UNITS.values(), strict=True))
    if not seconds:
        raise InputError(f"--time-limit must be a time such as 2h, 90m or 1h30m, not {shown(text)}")
    return float(seconds)


@dataclass
class TimeLimit:
    """The time of one run, from when this is made.

    Attributes:
        folder: The run's, for the command that continues it.
        text: The limit as it was given; None without one.
        started: When it began.
    """

    folder: str
    text: str | None
    started: float = field(default_factory=lambda: monotonic())

    def __post_init__(self) -> None:
        self._seconds = parse_seconds(self.text) if self.text is not None else float("inf")

    def leaves(self, seconds: float) -> bool:
        """Tell whether there is time left.

        Args:
            seconds: How long what comes next takes.

        Returns:
            Whether it would end in time.
        """
        return monotonic() - self.started + seconds <= self._seconds

    def stop(self, done: int, epochs: int) -> NoReturn:
        """End the run.

        Args:
            done: Finished epochs, which are kept.
            epochs: All of them.

        Raises:
            OutOfTime: Always.
        """
        raise OutOfTime(
            f"stopped at its time limit of {self.text} with {done} of {epochs} epochs kept:"
            f" lowtide train --resume {self.folder} --time-limit {self.text} continues"
        )

"""Log numbers to tensorboard, wandb and others through Accelerate's trackers."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    get_available_trackers,
    on_main_process,
)

from ..errors import InputError, UnknownName

METRICS = "metrics.csv"
PROJECT = "lowtide"
OWN = "csv"


class CsvTracker(GeneralTracker):
    """Writes `metrics.csv`: one row `step,name,value` per number, after each update and epoch.

    Of a run that goes on, rows of updates that are taken again are dropped.
    """

    name = OWN
    requires_logging_directory = True

    def __init__(self, path: Path, first: int) -> None:
        super().__init__()
        self.path, self.first, self._begun = path, first, False

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.path

    @on_main_process
    def start(self) -> None:
        """Begin the file, or go on with it; older versions of Accelerate leave that to `log`."""
        self._begun = True
        kept: list[list[str]] = []
        if self.first and self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))[1:]
            kept = [r for r in rows if len(r) == 3 and r[0].isdigit() and int(r[0]) <= self.first]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["step", "name", "value"], *kept])

    @on_main_process
    def store_init_configuration(self, values: dict[str, object]) -> None:
        """Do nothing: `config.yaml` lies beside the file."""

    @on_main_process
    def log(self, values: dict[str, object], step: int | None = None, **kwargs: Any) -> None:
        """Add rows."""
        if not self._begun:
            self.start()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([step, name, value] for name, value in values.items())


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Check the names of a run's trackers.

    Args:
        names: csv, or any tracker that Accelerate knows.

    Returns:
        The names.

    Raises:
        UnknownName: Nobody knows one.
        InputError: One is not installed.
    """
    known = {str(n) for n in LOGGER_TYPE_TO_CLASS}
    here = {str(n) for n in get_available_trackers()}
    for name in names:
        if name not in {OWN, *known}:
            raise UnknownName("tracker", name, {OWN, *known})
        if name != OWN and name not in here:
            raise InputError(
                f"--log {name} needs {name}, which is not installed: pip install {name}"
            )
    return tuple(dict.fromkeys(names))


class Trackers:
    """The trackers of a run."""

    def __init__(
        self,
        accelerator: Accelerator,
        names: Sequence[str],
        folder: Path,
        options: Mapping[str, object],
        first: int,
    ) -> None:
        """Begin.

        Args:
            accelerator: The run's.
            names: What `check_trackers` gave.
            folder: The run's.
            options: The run's.
            first: Updates that are done already.
        """
        self._accelerator, self._on = accelerator, bool(names)
        if not names:
            return
        accelerator.log_with = [
            CsvTracker(folder / METRICS, first) if name == OWN else name for name in names
        ]
        accelerator.project_configuration.set_directories(str(folder))
        flat = {k: v if isinstance(v, int | float | str) else str(v) for k, v in options.items()}
        accelerator.init_trackers(PROJECT, flat)

    def log(self, step: int, **values: float | None) -> None:
        """Log numbers to all trackers.

        Args:
            step: Updates so far.
            **values: By name; None is left out.
        """
        if self._on:
            self._accelerator.log({n: v for n, v in values.items() if v is not None}, step=step)

    def end(self) -> None:
        """Let every tracker write its buffer."""
        for tracker in self._accelerator.trackers if self._on else ():
            tracker.finish()

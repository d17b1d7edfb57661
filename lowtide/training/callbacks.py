"""Callbacks: what a program is told while a run lasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..errors import InputError, shown
from .summary import Epoch, RunSummary


@dataclass(frozen=True)
class Step:
    """An update that was made.

    Attributes:
        epoch: Its epoch, from 1.
        step: Its number within the epoch, from 1.
        steps: Updates of an epoch.
        loss: Mean loss of its images.
    """

    epoch: int
    step: int
    steps: int
    loss: float


class Callback:
    """Called by a run as it proceeds, in the process that writes its files.

    An exception ends the run, which can be continued from its last finished epoch.
    """

    def around(self, model: nn.Module) -> nn.Module:
        """Give the module that runs in the model's place, before the first epoch.

        Args:
            model: Images to outputs; what trains is its own, and what is saved.

        Returns:
            The same, or a module that calls it.
        """
        return model

    def on_step(self, step: Step) -> None:
        """Called after each update.

        Args:
            step: Which, and its loss.
        """

    def on_epoch(self, epoch: Epoch) -> None:
        """Called after each epoch, once the run can be resumed from it.

        Args:
            epoch: What `log.jsonl` says of it.
        """

    def on_end(self, summary: RunSummary) -> None:
        """Called at the end, once the run folder is complete.

        Args:
            summary: What `summary.json` says.
        """


def refuse_other_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse what a run could not call.

    Args:
        callbacks: What was given.

    Raises:
        InputError: It is no list or tuple of callbacks.
    """
    listed = isinstance(callbacks, list | tuple)
    for given in callbacks if listed else (callbacks,):
        if not (listed and isinstance(given, Callback)):
            raise InputError(f"callbacks must be a list of lowtide.Callback(), not {shown(given)}")

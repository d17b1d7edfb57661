"""Kinds of targets, one a file: loss, start of training, scores, predictions.

A kind is found by walking this folder; its `KIND` is a class of `kind.Targets`.

Imports errors, values.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence

from ..errors import InputError, UnknownName
from .kind import Balance as Balance
from .kind import Label as Label
from .kind import Targets as Targets

_FILES = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]

KINDS: dict[str, type[Targets]] = {
    kind.task: kind for file in _FILES if (kind := getattr(file, "KIND", None)) is not None
}
"""Kinds of targets by the name of the task that learns them."""
DENSE = ("segment", "detect", "instances")
"""Tasks of `lowtide.dense`, whose targets are masks and boxes."""


def refuse_unknown(task: str, loss: str | None, balance: Balance) -> None:
    """Refuse an unknown task, and options that a task does not have.

    Args:
        task: Its name.
        loss: Name of a loss; None for the task's own.
        balance: How rare classes are weighed.

    Raises:
        UnknownName: There is no such task, or no such loss of it.
        InputError: The task has no classes to weigh.
    """
    if task in DENSE:
        for name, given in (("loss", loss is not None), ("balance", balance != "none")):
            if given:
                raise InputError(f"{name} is for {', '.join(KINDS)}, not for task {task}")
        return
    if task not in KINDS:
        raise UnknownName("task", task, [*KINDS, *DENSE])
    kind = KINDS[task]
    if loss is not None and loss not in kind.losses:
        raise UnknownName(f"loss of task {task}", loss, kind.losses)
    if balance != "none" and not kind.balances:
        able = ", ".join(name for name, other in KINDS.items() if other.balances)
        raise InputError(f"balance weighs classes, and task {task} has none: it is for {able}")


def describe(targets: Targets) -> dict[str, object]:
    """Describe targets as a saved model needs them, beside the names of its outputs.

    Args:
        targets: What it has learnt.

    Returns:
        What `construct` takes.
    """
    return {"task": targets.task, **targets.to_dict()}


def construct(names: tuple[str, ...], content: Mapping[str, object] | None) -> Targets:
    """Make the targets of a trained model from its description.

    Args:
        names: Of its outputs.
        content: What `describe` gave; None of a version that knew classes alone.

    Returns:
        The targets.

    Raises:
        UnknownName: There is no such task.
    """
    task = "classify" if content is None else content.get("task")
    if task not in KINDS:
        raise UnknownName("task", task, KINDS)
    return KINDS[str(task)].from_dict(names, content or {})


def blank(
    task: str, outputs: int, *, loss: str | None = None, balance: Balance = "none"
) -> Targets:
    """Make targets that stand for any others of their shape, as a plan needs them.

    Args:
        task: Their kind.
        outputs: What a model gives for an image, in numbers.
        loss: Name of the loss; by default the kind's own.
        balance: How rare classes are weighed.

    Returns:
        Targets with numbers for names.
    """
    names = tuple(map(str, range(outputs)))
    labels: Sequence[Label] = KINDS[task].examples(outputs)
    return KINDS[task].of(names, labels, loss=loss, balance=balance)

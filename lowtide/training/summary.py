"""Read summaries, refusing those that do not say what a run says; a file may be anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, shown
from ..paths import read_json

LARGEST = 1e18
"""Bound of every number in a summary."""

NUMBER = (int, float)
NEEDED: Mapping[str, tuple[type, ...]] = {
    "config": (dict,),
    "config.model": (str,),
    "config.data": (str,),
    "config.method.name": (str,),
    "config.policy": (str,),
    "config.lr": NUMBER,
    "config.seed": (int,),
    "config.batch_size": (int,),
    "data.fingerprint": (str,),
    "data.classes": (list,),
    "data.test": (int,),
    "preprocessing": (dict,),
    "trainable_parameters": (int,),
    "total_parameters": (int,),
    "planned.peak_bytes": (int,),
    "planned.parts": (dict,),
    "measured_peak_bytes": (int, type(None)),
    "step_seconds": (*NUMBER, type(None)),
    "history": (list,),
    "environment": (dict,),
    "val_accuracy": (*NUMBER, type(None)),
    "test_accuracy": (*NUMBER, type(None)),
    "test_confusion": (list, type(None)),
}
"""What a summary says, and as what; where None will do, it may say nothing."""


def read_summary(path: Path) -> dict[str, Any]:
    """Read what a finished run says of itself.

    Args:
        path: The file.

    Returns:
        The summary, everything in it that lowtide uses of its kind.

    Raises:
        InputError: The file cannot be read, or something is missing or is not of its kind.
    """
    summary = read_json(path)
    if not isinstance(summary, dict) or "config" not in summary:
        raise InputError(f"{path} was not left by lowtide train")
    for name, kinds in NEEDED.items():
        value: Any = summary
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not _fits(value, kinds, share="accuracy" in name):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise InputError(f"{path} is damaged: {name} is {shown(value)}, not {wanted}")
    _check_lists(summary, path)
    return summary


def _check_lists(summary: dict[str, Any], path: Path) -> None:
    for line in summary["history"]:
        numbers = isinstance(line, dict) and (line.get("train_loss"), line.get("val_accuracy"))
        if not numbers or not all(_fits(n, (*NUMBER, type(None))) for n in numbers):
            raise InputError(f"{path} is damaged: {shown(line)} in history")
    for part, size in summary["planned"]["parts"].items():
        if not _fits(size, (int,)):
            raise InputError(f"{path} is damaged: planned part {part} is {shown(size)}")
    classes = len(summary["data"]["classes"])
    for triple in summary.get("test_confusion") or ():
        whole = isinstance(triple, list) and len(triple) == 3
        if not whole or not all(_fits(n, (int,)) for n in triple):
            raise InputError(f"{path} is damaged: {shown(triple)} in test_confusion")
        if max(triple[:2]) >= classes:
            raise InputError(
                f"{path} is damaged: {triple!r} in test_confusion of {classes} classes"
            )


def _fits(value: object, kinds: tuple[type, ...], share: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    most = 1 if share else LARGEST
    return not isinstance(value, int | float) or 0 <= value <= most

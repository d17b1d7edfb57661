"""Refuse summaries that do not say what is reported; a file may be anybody's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bench.results import summary_of
from ..errors import InputError

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


def check(path: Path) -> None:
    """Look through a summary.

    Args:
        path: The file.

    Raises:
        InputError: Something is missing, or is not of its kind.
    """
    summary: Any = summary_of(path.parent)
    for name, kinds in NEEDED.items():
        value = summary
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not _fits(value, kinds):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise InputError(f"{path} is damaged: {name} is {value!r}, not {wanted}")
    for line in summary["history"]:
        numbers = isinstance(line, dict) and (line.get("train_loss"), line.get("val_accuracy"))
        if not numbers or not all(_fits(n, (*NUMBER, type(None))) for n in numbers):
            raise InputError(f"{path} is damaged: {line!r} in history")
    for part, size in summary["planned"]["parts"].items():
        if not _fits(size, (int,)):
            raise InputError(f"{path} is damaged: planned part {part} is {size!r}")
    classes = len(summary["data"]["classes"])
    for triple in summary.get("test_confusion") or ():
        whole = isinstance(triple, list) and len(triple) == 3
        if not whole or not all(_fits(n, (int,)) and n >= 0 for n in triple):
            raise InputError(f"{path} is damaged: {triple!r} in test_confusion")
        if max(triple[:2]) >= classes:
            raise InputError(
                f"{path} is damaged: {triple!r} in test_confusion of {classes} classes"
            )


def _fits(value: object, kinds: tuple[type, ...]) -> bool:
    finite = not isinstance(value, float) or math.isfinite(value)
    return isinstance(value, kinds) and not isinstance(value, bool) and finite

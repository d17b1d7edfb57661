"""Dense tasks, one a file: its model, its batch, its loss, its answers and its scores.

A task is found by walking this folder; its `TASK` is a class of `kind.DenseTask`.
"""

from __future__ import annotations

import importlib
import pkgutil

from .kind import DenseTask as DenseTask

_FILES = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]

TASKS: dict[str, type[DenseTask]] = {
    made.task: made for file in _FILES if (made := getattr(file, "TASK", None)) is not None
}
"""Dense tasks by name."""

"""Paths as users write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import InputError


def located(path: Path | str) -> Path:
    """Replace `$NAME` by the environment variable and `~` by the home folder.

    A run's record keeps the path as it was given, so that it can be repeated on another machine.

    Args:
        path: As it was given.

    Returns:
        The path to open.

    Raises:
        InputError: A variable is not set.
    """
    found = os.path.expandvars(os.path.expanduser(path))
    if not os.path.exists(found) and (unset := re.search(r"\$\{?\w+\}?", found)):
        raise InputError(f"{path}: the environment variable {unset[0]} is not set")
    return Path(found)

"""Libraries that only some commands need, installed with an extra."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import InputError


def extra(module: str, name: str) -> ModuleType:
    """Import a library that an extra installs.

    Args:
        module: What to import.
        name: The extra, as in `pip install "lowtide[NAME]"`.

    Returns:
        The module.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        library = module.partition(".")[0]
        raise InputError(
            f'this command or option needs {library}: pip install "lowtide[{name}]"'
        ) from e

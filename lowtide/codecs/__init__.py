"""How a residue is kept: one file per codec, found by walking this folder.

Imports errors, kernels.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

CODECS: dict[str, type[Any]] = {}
"""Every codec by class name: the frozen dataclasses of the modules beside this one."""

for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_found.name}")
    for _name, _value in vars(_module).items():
        if dataclasses.is_dataclass(_value) and _value.__module__ == _module.__name__:
            CODECS[_name] = _value  # type: ignore[assignment]

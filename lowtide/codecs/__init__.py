"""How a residue is kept: one file per codec, found by walking this folder.

Imports errors, kernels.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

from .base import Codec

CODECS: dict[str, type[Codec]] = {}
"""Every codec by class name: the frozen dataclasses of the modules beside this one."""

CASES: dict[str, Codec] = {}
"""Codecs that the laws are proved on, for any residue; from each `CASES`. A codec for the slopes of
some functions only has none."""

for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_found.name}")
    for _name, _value in vars(_module).items():
        if dataclasses.is_dataclass(_value) and _value.__module__ == _module.__name__:
            CODECS[_name] = _value  # type: ignore[assignment]
    CASES |= getattr(_module, "CASES", {})

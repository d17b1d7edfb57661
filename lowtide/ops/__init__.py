"""What a backward needs: one file per op, found by walking this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from .saved import Answer, Op
from .saved import Call as Call
from .saved import Codecs as Codecs

CALLS: dict[Callable[..., Any], Answer] = {}
"""Which torch function is answered by what, gathered from the `CALLS` of each file."""

NAMES: list[str] = []
"""Names a policy may give a codec to."""

OPS: dict[str, Op] = {}
"""Every op by the name of its constant."""

for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_found.name}")
    CALLS |= getattr(_module, "CALLS", {})
    NAMES += getattr(_module, "NAMES", ())
    OPS |= {name: value for name, value in vars(_module).items() if isinstance(value, Op)}

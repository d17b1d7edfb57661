"""Memory-saving backward passes of torch functions: one file per op.

Imports errors, kernels, core, codecs.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..codecs.affine import Rounding
from ..codecs.base import Codec
from .case import Case
from .saved import Call as Call
from .saved import Calls as Calls
from .saved import Codecs as Codecs
from .saved import Op

CALLS: Calls = {}
"""Which torch function is answered by what, gathered from the `CALLS` of each file."""

TIGHT: dict[str, Codec] = {}
"""What the tight policy keeps of each op, by the name a policy knows it by; from each `TIGHT`."""

S2A: dict[str, Callable[[Rounding], Codec]] = {}
"""What S2A's policy keeps, by its way of rounding, of the ops it knows; from each `S2A`."""

NORMS: list[str] = []
"""Ops whose x^ is kept more finely in front of what runs again; from each `NORMS`."""

_followed: dict[str, set[Callable[..., object]]] = {
    name: set() for name in ("FOLLOWED", "PRODUCTS", "FOLLOWED_TO_ATTENTION")
}

CASES: dict[str, Case] = {}
"""Examples that the laws are proved on; from each `CASES`."""

OPS: dict[str, Op] = {}
"""Every op by the name of its constant."""


def _gather(module: ModuleType) -> None:
    for name, table in (("CALLS", CALLS), ("TIGHT", TIGHT), ("S2A", S2A), ("CASES", CASES)):
        given: dict[Any, Any] = getattr(module, name, {})
        if twice := given.keys() & table.keys():
            raise ImportError(f"{module.__name__}: {name} says {twice} a second time")
        table |= given
    for name, functions in _followed.items():
        functions.update(getattr(module, name, ()))
    NORMS.extend(getattr(module, "NORMS", ()))
    OPS.update((name, value) for name, value in vars(module).items() if isinstance(value, Op))


for _found in pkgutil.iter_modules(__path__):
    _gather(importlib.import_module(f"{__name__}.{_found.name}"))

FOLLOWED = frozenset(_followed["FOLLOWED"])
"""Functions that cost next to nothing to call again; from each `FOLLOWED`."""

PRODUCTS = frozenset(_followed["PRODUCTS"])
"""Functions that cost a matrix product to call again; from each `PRODUCTS`."""

FOLLOWED_TO_ATTENTION = FOLLOWED | PRODUCTS | _followed["FOLLOWED_TO_ATTENTION"]
"""Functions that make queries, keys and values, called again in an attention's backward; the two
above, and each `FOLLOWED_TO_ATTENTION`."""

NAMES: list[str] = list(TIGHT)
"""Names a policy may give a codec to."""

"""What trains: every file in this folder is one method, and importing the folder finds them all.

Imports errors, values, core, codecs, ops, memory.
"""

from __future__ import annotations

import importlib
import pkgutil

from ..core.method import METHODS as METHODS

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

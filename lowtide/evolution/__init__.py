"""A search for what trains, where and how wide: a supernet, evolution under limits, the report.

Imports errors, paths, values, core, methods, families, tuning, planning, training.
"""

from __future__ import annotations

from .options import Search as Search
from .search import search as search

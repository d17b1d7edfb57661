"""Suites: methods x data sets x seeds, selected on validation, tested once, every row a file.

Imports errors, paths, extras, values, planning, data, training.
"""

from __future__ import annotations

from .results import Result as Result
from .results import read_results as read_results
from .run import run_suite as run_suite
from .suite import Suite as Suite

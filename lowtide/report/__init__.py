"""Reports of runs and suites: one self-contained page, Markdown, or CSV.

Imports errors, paths, core, tuning, targets, data, training, evolution, inference, bench.
"""

from __future__ import annotations

from .page import Section as Section
from .rows import Entry as Entry
from .rows import gather as gather
from .write import write_report as write_report

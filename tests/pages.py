"""The Python that the README and the pages of docs/ print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def code_of(text: str) -> list[str]:
    """Blocks of Python in Markdown."""
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def code(page: str) -> list[str]:
    """Blocks of a page of docs/; outside a checkout the test is skipped."""
    if not DOCS.is_dir():
        pytest.skip("runs in a checkout only")
    return code_of((DOCS / page).read_text())


def run(*blocks: str) -> dict[str, Any]:
    """Run blocks one after the other; the names they define."""
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "a page", "exec"), names)
    return names

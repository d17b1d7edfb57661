"""Generated pages are fresh: the registries and the docs say the same."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "generate_docs.py"
if not SCRIPT.is_file():
    pytest.skip("runs in a checkout only", allow_module_level=True)
PAGES = runpy.run_path(str(SCRIPT))["PAGES"]


@pytest.mark.parametrize("page", PAGES)
def test_generated_page_is_fresh(page: str) -> None:
    stored = (ROOT / "docs" / page).read_text()
    assert stored == PAGES[page](), "run python scripts/generate_docs.py"

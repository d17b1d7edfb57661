"""Generated pages are fresh: the registries and the docs say the same."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_files_of_the_package_that_a_page_names_are_there(page: str) -> None:
    named = re.findall(r"lowtide/[\w/]+(?:\.py|/)", (ROOT / "docs" / page).read_text())
    assert not [name for name in named if not (ROOT / name).exists()]

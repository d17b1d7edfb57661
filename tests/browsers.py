"""A real browser, where there is one: Playwright and Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """Start one; without it the test is skipped."""
    reason = "needs playwright: pip install -e .[dev]"
    driver = pytest.importorskip("playwright.sync_api", reason=reason)
    path = next((path for name in NAMES if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with driver.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()

"""One generated data set for all tests of a process."""

from __future__ import annotations

from pathlib import Path

import pytest
from shapes import write_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares and discs in COCO's format."""
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes")

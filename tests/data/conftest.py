"""Two classes on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def cats_and_dogs(paint: Callable[..., Path]) -> Path:
    """Two class folders, 20 cats and 10 dogs."""
    paint(*(f"cat/{n}.png" for n in range(20)))
    return paint(*(f"dog/{n}.png" for n in range(10)))

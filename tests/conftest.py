"""One seed and one thread for every test: tiny nets are slower on more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture
def all_cores(_repeatable: None) -> None:
    """Give a test with a real architecture the whole machine."""
    torch.set_num_threads(THREADS)

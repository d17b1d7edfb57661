"""What torch dispatches, and tensors that say they are on a GPU and have no storage."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode

on_fake_cuda = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.9") and not torch.cuda.is_available(),
    reason="torch 2.8 asks for a driver even where nothing is stored",
)


class Called(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names[func._schema.name] += 1
        return func(*args, **(kwargs or {}))

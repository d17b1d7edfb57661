"""Tensors that say they are on a GPU, and have no storage."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version

on_fake_cuda = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.9") and not torch.cuda.is_available(),
    reason="torch 2.8 asks for a driver even where nothing is stored",
)

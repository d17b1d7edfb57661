"""Torch ops that pack and unpack: each a plain PyTorch definition, and kernels that equal it."""

from __future__ import annotations

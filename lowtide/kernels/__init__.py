"""Torch ops that pack and unpack: each a plain PyTorch definition, and kernels that equal it.

On a CPU a kernel compiled at first use runs them, where there is a C++ compiler; on an NVIDIA GPU a
Triton kernel; everywhere else, and in float64, the definition itself.

Imports nothing of lowtide.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

if torch.cuda.is_available() and importlib.util.find_spec("triton"):
    for kernels in ("triton", "triton_activation", "triton_layer_norm", "triton_normal_float"):
        importlib.import_module(f"{__name__}.{kernels}")

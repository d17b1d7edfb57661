"""The CPU kernels: compiled once per machine at first use, absent where there is no compiler."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("packing.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp")
ROUNDING = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
"""Every operation rounds as PyTorch's does."""


def reads(*dtypes: torch.dtype) -> bool:
    """Say whether the kernels are there for tensors of these dtypes.

    Args:
        *dtypes: Dtypes of numbers and statistics.

    Returns:
        Whether to call them.
    """
    return set(dtypes) <= {torch.float32, torch.bfloat16} and _library() is not None


Argument = Tensor | tuple[float, ...] | tuple[int, ...] | int | None


def call(kernel: str, *arguments: Argument) -> None:
    """Call a kernel.

    Args:
        kernel: Its name in `packing.cpp`.
        *arguments: Contiguous tensors and tables as pointers, counts as 64-bit integers; the number
            of threads is added.
    """
    threads = torch.get_num_threads()
    getattr(_library(), kernel)(*map(_converted, (*arguments, threads)))


def name(dtype: torch.dtype) -> str:
    """Give the name of a dtype as the kernels have it.

    Args:
        dtype: A dtype.

    Returns:
        Its name without the module.
    """
    return str(dtype).removeprefix("torch.")


def _converted(argument: Argument) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, tuple):
        kind: Any = ctypes.c_double if isinstance(argument[0], float) else ctypes.c_int64
        return (kind * len(argument))(*argument)
    return ctypes.c_void_p() if argument is None else ctypes.c_int64(argument)


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler or sys.byteorder != "little":
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.CalledProcessError):
        return None


def _built(compiler: str) -> Path:
    text = " ".join((SOURCE.read_text(), compiler, *FLAGS, *ROUNDING, _machine()))
    file = f"packing-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowtide"
    if (folder / file).exists():
        return folder / file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder))
    except OSError:
        folder = made = Path(tempfile.mkdtemp())
    # OpenMP is not linked: PyTorch has loaded one already, and two would fight for the cores.
    compile_ = (compiler, *FLAGS, *ROUNDING, "-c", str(SOURCE), "-o", str(made / "packing.o"))
    link = (compiler, "-shared", str(made / "packing.o"), "-o", str(made / file))
    for command in (compile_, link):
        subprocess.run(command, check=True, capture_output=True)
    # In one step, for processes that start together.
    (made / file).replace(folder / file)
    if made != folder:
        shutil.rmtree(made)
    return folder / file


def _machine() -> str:
    """Name what -march=native stands for, should the cache be shared by machines."""
    cpu = Path("/proc/cpuinfo")
    flags = [line for line in cpu.read_text().splitlines() if line.startswith("flags")]
    return f"{platform.machine()} {torch.__version__} {flags[:1]}"

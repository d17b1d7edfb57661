"""The CPU kernels: compiled once per machine at first use, absent where they cannot be."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("packing.cpp")
FLAGS = ("-O3", "-std=c++17", "-fPIC")
ROUNDING = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
"""Every operation rounds as PyTorch's does."""
TUNING = (("-march=native", "-fopenmp"), ("-march=native",), ())
"""What not every compiler takes, the best first; without OpenMP the kernels have one thread."""


@dataclass(frozen=True)
class Kernels:
    """The CPU kernels of this process, or why there are none."""

    library: ctypes.CDLL | None = None
    reason: str = ""
    """Why there are none."""
    file: Path | None = None
    """Where they are kept; none where the cache cannot be written."""

    @property
    def instructions(self) -> str:
        """The widest vectors that they were compiled for."""
        if self.library is None:
            return ""
        self.library.instructions.restype = ctypes.c_char_p
        return self.library.instructions().decode()


class NoKernels(Exception):
    """The kernels cannot be had; the message says why."""


def reads(*dtypes: torch.dtype) -> bool:
    """Say whether the kernels handle tensors of these dtypes.

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
    """Give a dtype's name in the kernels.

    Args:
        dtype: A dtype.

    Returns:
        Its name without the module.
    """
    return str(dtype).removeprefix("torch.")


def _converted(argument: Argument) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, tuple):
        kind: Any = ctypes.c_double if isinstance(argument[0], float) else ctypes.c_int64
        return (kind * len(argument))(*argument)
    return ctypes.c_void_p() if argument is None else ctypes.c_int64(argument)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The kernels, for those who need them: their absence is said, once."""
    found = kernels()
    if found.library is None:
        warnings.warn(
            f"lowtide packs without its CPU kernels, with the same results but slower:"
            f" {found.reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return found.library


@functools.cache
def kernels() -> Kernels:
    """Load the kernels from the cache, or build them.

    Returns:
        The kernels of this process.
    """
    if sys.byteorder != "little":
        return Kernels(reason="they are for little-endian machines")
    try:
        return _found(compiler())
    except NoKernels as e:
        return Kernels(reason=str(e))


def compiler() -> tuple[str, ...]:
    """Find the C++ compiler: `CXX`, words as in a shell, or else the first of the usual names.

    Returns:
        Its command.

    Raises:
        NoKernels: There is none.
    """
    given = os.environ.get("CXX", "")
    try:
        words = shlex.split(given)
    except ValueError as e:
        raise NoKernels(f"CXX={given!r} is no command: {e}") from e
    if words and not shutil.which(words[0]):
        raise NoKernels(f"there is no {words[0]}, which CXX names")
    usual = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    if not words and not usual:
        raise NoKernels("there is no C++ compiler: neither c++ nor g++ nor clang++")
    return tuple(words) or (usual[0],)


def cache() -> Path | None:
    """Find the folder for what is built once per machine.

    Returns:
        `lowtide` in XDG_CACHE_HOME or ~/.cache; none for a user without a home.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    with suppress(RuntimeError):
        return (Path(given) if given else Path.home() / ".cache") / "lowtide"
    return None


def _found(command: tuple[str, ...]) -> Kernels:
    """Load the kernels that a compiler makes, from the cache if they lie there whole."""
    text = " ".join((
        SOURCE.read_text(),
        *command,
        *FLAGS,
        *ROUNDING,
        *map(str, TUNING),
        _machine(),
    ))
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache()
    for file in _kept(folder, key):
        with suppress(
            OSError
        ):  # not for this process: another C library, a folder without execution
            return Kernels(ctypes.CDLL(str(file)), file=file)
    with tempfile.TemporaryDirectory(prefix="lowtide-", ignore_cleanup_errors=True) as made:
        built, library = _built(command, Path(made))
        return Kernels(library, file=_keep(built, folder, key))


def _kept(folder: Path | None, key: str) -> Iterator[Path]:
    """Find what is in the cache; what is not what its name says is removed.

    A file is mapped, not read, when it is loaded: one cut short by a full disk or a power cut would
    end the process with a bus error.

    Yields:
        Files that hold what was once written.
    """
    with suppress(OSError):
        for file in sorted(folder.glob(f"packing-{key}-*.so")) if folder else ():
            if file.name == _name_of(file.read_bytes(), key):
                yield file
            else:
                file.unlink()


def _name_of(content: bytes, key: str) -> str:
    return f"packing-{key}-{hashlib.sha256(content).hexdigest()[:32]}.so"


def _keep(built: Path, folder: Path | None, key: str) -> Path | None:
    """Put a library into the cache, whole or not at all, for processes that start together."""
    content = built.read_bytes()
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return Path(unfinished).replace(folder / _name_of(content, key))
    except OSError:
        return None


def _built(command: tuple[str, ...], folder: Path) -> tuple[Path, ctypes.CDLL]:
    """Compile and load the kernels with the best tuning that works."""
    failure = ""
    for i, tuning in enumerate(TUNING):
        made, object_ = folder / f"packing-{i}.so", str(folder / f"packing-{i}.o")
        flags = (*FLAGS, *tuning, *ROUNDING)
        try:
            _run((*command, *flags, "-c", str(SOURCE), "-o", object_))
            # OpenMP is not linked: PyTorch has loaded one, and two would fight for the cores.
            _run((*command, "-shared", object_, "-o", str(made)))
            return made, ctypes.CDLL(str(made))
        except (OSError, NoKernels) as e:
            failure = failure or f"{shlex.join(command)} failed: {e}"
    raise NoKernels(failure)


def _run(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        worst = [line for line in said if "error" in line]
        raise NoKernels((worst or said or [f"exit status {done.returncode}"])[0])


def _machine() -> str:
    """Name what -march=native stands for, should the cache be shared by machines."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
    flags = [line for line in lines if line.startswith(("flags", "Features"))] or lines
    return f"{platform.machine()} {torch.__version__} {flags[:1]}"

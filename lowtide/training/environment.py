"""Record the machine and the software of a run, and what lowtide can use of them."""

from __future__ import annotations

import datetime
import functools
import importlib.util
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from ..extras import OURS, installed, optional, required
from ..kernels import native
from .summary import Environment


def environment(device: torch.device, processes: int) -> Environment:
    """Record the machine and the versions that a result may depend on.

    Args:
        device: Where the run computed.
        processes: How many processes shared it.

    Returns:
        Versions, the commit where lowtide runs from a checkout, the machine, and the date.
    """
    return Environment(
        python=platform.python_version(),
        lowtide=version(OURS),
        torch=version("torch"),
        timm=version("timm"),
        commit=commit(),
        machine=platform.machine(),
        device=str(device),
        device_name=_name(device),
        threads=torch.get_num_threads(),
        processes=processes,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        folder=_working_folder(),
    )


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def diagnosis() -> dict[str, object]:
    """Find what lowtide runs with on this machine, and what slows it down.

    Returns:
        Plain values by subject; `warnings` holds one line for each thing a user may want to mend.
    """
    packages = {name: installed(name) for name in (OURS, "torch", "torchvision", "timm")}
    packages |= {r.name: installed(r.name) for r in required() if r.name not in packages}
    kernels = _kernels()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": commit(),
        "packages": packages,
        "extras": {
            name: {library.name: installed(library.name) for library in libraries}
            for name, libraries in optional().items()
        },
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "devices": devices(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        **kernels,
        "warnings": [*_unsupported(), *_slower(kernels)],
    }


def devices() -> list[str]:
    """Name the devices torch can compute on.

    Returns:
        The CPU, then every accelerator with its name and memory where torch knows them.
    """
    found = [f"cpu: {_name(torch.device('cpu'))}"]
    if not torch.accelerator.is_available():
        return found
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    module = torch.get_device_module(kind)
    for i in range(torch.accelerator.device_count()):
        about = ""
        if hasattr(module, "get_device_properties"):
            has = module.get_device_properties(i)
            about = f": {has.name}, {has.total_memory / 2**30:.1f} GiB"
        found.append(f"{kind.type}:{i}{about}")
    return found


def commit() -> str | None:
    """Find the commit of the checkout lowtide runs from.

    Returns:
        Its hash, with `+` where files differ from it; None outside a checkout.
    """
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        tracked = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "--error-unmatch", __file__],
            capture_output=True,
        )
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # no git
        return None
    inside = tracked.returncode == found.returncode == 0
    return found.stdout.strip() if inside else None


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor()


@functools.cache
def _processor() -> str:
    """The processor's own name, which `platform.processor` leaves out on most Linux machines."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def _unsupported() -> Iterator[str]:
    """Name what is installed in another version than lowtide is tested with."""
    extras = [library for libraries in optional().values() for library in libraries]
    for library in (*required(), *extras):
        own = installed(library.name)
        if own is not None and not library.specifier.contains(own, prereleases=True):
            yield (
                f"{library.name} {own} is installed; lowtide is tested with"
                f" {library.name}{library.specifier}"
            )


def _kernels() -> dict[str, object]:
    """The CPU's kernels and the GPU's, and what the first are built with and kept in."""
    try:
        command: tuple[str, ...] = native.compiler()
    except native.NoKernels:
        command = ()
    here, folder = native.kernels(), native.cache()
    return {
        "compiler": shlex.join(command) or None,
        "compiler_version": _first_line((*command, "--version")) if command else None,
        "cache": str(folder) if folder else None,
        "cpu_kernels": here.instructions or None,
        "cpu_kernels_absent": here.reason or None,
        "cpu_kernels_file": str(here.file) if here.file else None,
        "gpu_kernels": _gpu_kernels(),
    }


def _gpu_kernels() -> str | None:
    held = torch.cuda.is_available() and importlib.util.find_spec("triton")
    return f"Triton {installed('triton')}" if held else None


def _first_line(command: tuple[str, ...]) -> str | None:
    try:
        said = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout
    except OSError:
        return None
    return next(iter(said.splitlines()), None)


def _slower(kernels: dict[str, object]) -> Iterator[str]:
    """Say what is right but slower than it need be."""
    if kernels["cpu_kernels_absent"]:
        yield f"compression on the CPU runs without kernels: {kernels['cpu_kernels_absent']}"
    elif not kernels["cpu_kernels_file"]:
        place = kernels["cache"] or "there is no home folder"
        yield f"the CPU kernels are compiled at every start: nothing can be kept ({place})"
    if torch.cuda.is_available() and not kernels["gpu_kernels"]:
        yield "compression on the GPU runs without kernels: triton is not installed"

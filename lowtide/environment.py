"""Where and with what a run was made."""

from __future__ import annotations

import datetime
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Record what a result may depend on beside its options.

    Args:
        device: Where the run computed.
        processes: How many processes shared it.

    Returns:
        Versions, the commit where lowtide runs from a checkout, the machine, and the date.
    """
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("lowtide", "torch", "timm")},
        "commit": commit(),
        "machine": platform.machine(),
        "device": str(device),
        "device_name": _name(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


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
    return platform.processor() or platform.machine()

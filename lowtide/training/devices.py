"""The device a user names, where this machine has it."""

from __future__ import annotations

import os

import torch

from ..errors import InputError


def device_of(name: str) -> torch.device:
    """Find a device on this machine, and make it the one that its kind means from here on.

    Args:
        name: `auto` takes an accelerator where there is one.

    Returns:
        The device.

    Raises:
        InputError: This machine does not have it, or several processes share the machine.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return torch.device(found.type) if found else torch.device("cpu")
    wanted = torch.device(name)
    if wanted.type == "cpu":
        return wanted
    here = [f"{found.type}:{i}" for i in range(torch.accelerator.device_count())] if found else []
    if f"{wanted.type}:{wanted.index or 0}" not in here:
        raise InputError(
            f"device {name} is not on this machine: expected {', '.join(['auto', 'cpu', *here])}"
        )
    if wanted.index is not None and wanted.type != "mps":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(f"device {name} is for one process; several share the machine's")
        torch.accelerator.set_device_index(wanted.index)
    return torch.device(wanted.type)

"""Start of every run: devices and processes, and the backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from ..errors import InputError
from ..tuning.backbone import create
from .config import RunConfig
from .devices import device_of


def accelerate(config: RunConfig) -> Accelerator:
    """Find the devices and processes of a run.

    Args:
        config: What to do.

    Returns:
        Accelerate's.

    Raises:
        InputError: Several processes are to update in backward, or to keep features; or a processor
            is to compute in fp16.
    """
    AcceleratorState._reset_state()  # or a second run in one process would be held to the first's
    accelerator = Accelerator(
        mixed_precision=config.amp, cpu=device_of(config.device).type == "cpu"
    )
    if config.amp == "fp16" and accelerator.device.type == "cpu":  # Accelerate would leave it out
        raise InputError(
            "amp fp16 needs an accelerator, and the device is cpu: expected bf16 or no"
        )
    if config.update_in_backward and accelerator.num_processes > 1:
        raise InputError("update_in_backward works in one process: others average gradients first")
    if config.cache_features and accelerator.num_processes > 1:
        raise InputError(
            "cache_features works in one process only: start one, or leave cache_features out"
        )
    return accelerator


def pretrained(config: RunConfig) -> nn.Module:
    """Make a run's backbone; the generator starts at its seed.

    Args:
        config: What to do.

    Returns:
        The backbone, every weight of it a number.
    """
    torch.manual_seed(config.seed)
    return create(
        config.model,
        checkpoint=Path(config.checkpoint) if config.checkpoint else None,
        pretrained=config.pretrained,
        image_size=config.image_size,
        drop_path=config.drop_path,
    )

"""Safetensors: merged weights under timm's names; the header says classes and pre-processing."""

from __future__ import annotations

from pathlib import Path

from ...tuning.tuned import set_frozen_dtype
from ..evaluate import Trained
from ..merged import write_merged

SUFFIX = ".safetensors"


def write(trained: Trained, path: Path) -> list[str]:
    """Write merged weights, rounded where the run kept them in few bits.

    Args:
        trained: The run; not to be used again.
        path: The file.

    Returns:
        The line that loads it.
    """
    set_frozen_dtype(trained.tuned, "fp32")
    return [write_merged(trained, path)]

"""peft's own layout, for a run of LoRA."""

from __future__ import annotations

from pathlib import Path

from ...tuning.peft import write_peft
from ..evaluate import Trained

SUFFIX = ""


def write(trained: Trained, path: Path) -> list[str]:
    """Write what `peft.PeftModel.from_pretrained` loads.

    Args:
        trained: The run.
        path: The folder.

    Returns:
        What whoever loads it must know.
    """
    return write_peft(trained.tuned, path)

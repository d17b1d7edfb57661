"""TorchScript: a traced graph, which torch and libtorch run without lowtide or timm."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from ...errors import LowtideError
from ...paths import whole
from ..evaluate import Trained
from .logits import graph_of, metadata, refuse_other_answers

SUFFIX = ".pt"


def write(trained: Trained, path: Path) -> list[str]:
    """Write a traced graph, images to logits, any batch.

    Args:
        trained: The run; not to be used again.
        path: The file.

    Returns:
        How it is loaded.

    Raises:
        LowtideError: torch cannot trace the model, or the file answers otherwise.
    """
    said = metadata(trained)
    model, batches = graph_of(trained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            traced = torch.jit.trace(model, batches[0], check_trace=False)
        except Exception as e:
            raise LowtideError(
                f"torch cannot trace this model: {(str(e).splitlines() or [''])[0][:200]}"
            ) from e
        with whole(path) as partial:
            torch.jit.save(traced, str(partial), _extra_files=said)
            loaded = torch.jit.load(str(partial))
            refuse_other_answers(model, batches, loaded, "TorchScript")
    names = ", ".join(f'"{name}": ""' for name in said)
    return [
        f'extra = {{{names}}}; model = torch.jit.load("{path}", _extra_files=extra); classes and'
        " preprocessing are JSON in extra"
    ]

"""ONNX, by torch's exporter; tried with ONNX Runtime before it is kept."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError, LowtideError
from ...extras import extra
from ...paths import whole
from ..evaluate import Trained
from .logits import graph_of, metadata, refuse_other_answers
from .task_set import TaskSet

SUFFIX = ".onnx"
LARGEST = 2**31 - 2**20
"""Bytes of weights that a file in protocol buffers holds."""


def write(trained: Trained, path: Path) -> list[str]:
    """Write an ONNX file: `images (batch, C, H, W)` to `logits (batch, K)`, any batch.

    Args:
        trained: The run; not to be used again.
        path: The file.

    Returns:
        What it takes and gives.

    Raises:
        InputError: An extra is missing, or the weights are larger than such a file may be.
        LowtideError: torch cannot export the model, or the file answers otherwise.
    """
    _refuse_missing()
    said = metadata(trained)
    model, batches = graph_of(trained)
    _save(model, batches, said, ["logits"], path)
    return [
        f"{_taken(batches)}; logits: (batch, {len(trained.classes)}); its metadata hold classes and"
        " preprocessing"
    ]


def write_tasks(runs: Mapping[str, Path], checkpoint: Path | None, path: Path) -> list[str]:
    """Write one ONNX file of several runs of a backbone: an output `(batch, K)` for each.

    Args:
        runs: Folders by name, which the outputs have.
        checkpoint: Where the backbone's weights are now, if not where they were.
        path: The file.

    Returns:
        What it takes and gives.
    """
    _refuse_missing()
    tasks = TaskSet(runs, checkpoint).eval()
    _save(tasks, tasks.batches, tasks.said, list(tasks.names), path)
    outputs = ", ".join(tasks.names)
    return [
        f"{_taken(tasks.batches)}; outputs {outputs}; its metadata hold tasks and preprocessing"
    ]


def _refuse_missing() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        extra(name, "export")


def _taken(batches: list[Tensor]) -> str:
    return f"images: float32 (batch, {', '.join(map(str, batches[0].shape[1:]))}), normalised"


def _save(
    model: torch.nn.Module,
    batches: list[Tensor],
    said: Mapping[str, str],
    outputs: list[str],
    path: Path,
) -> None:
    """Export, write, and hold the file's answers against the model's."""
    size = sum(t.nbytes for t in model.state_dict().values())
    if size > LARGEST:
        raise InputError(f"the weights take {size >> 20} MiB, and one ONNX file holds 2047")
    program = _exported(model, batches[0], outputs)
    program.model.metadata_props.update(said)
    program.model.producer_name = "lowtide"
    runtime = extra("onnxruntime", "export")
    with whole(path) as partial:
        program.save(str(partial), external_data=False)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        session = runtime.InferenceSession(
            str(partial), options, providers=["CPUExecutionProvider"]
        )
        refuse_other_answers(
            model, batches, lambda x: session.run(None, {"images": x.numpy()}), "ONNX"
        )


def _exported(model: torch.nn.Module, images: Tensor, outputs: list[str]) -> Any:
    """Export, with attention as matrix products where its form has no operator."""
    fused = [m for m in model.modules() if getattr(m, "fused_attn", False) is True]
    try:
        return _export(model, images, outputs)
    except LowtideError:
        if not fused:
            raise
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    return _export(model, images, outputs)


def _export(model: torch.nn.Module, images: Tensor, outputs: list[str]) -> Any:
    batch = {0: torch.export.Dim("batch", min=1)}
    try:
        with _quiet():
            return torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                dynamic_shapes=(batch,),
                input_names=["images"],
                output_names=outputs,
                verbose=False,
            )
    except Exception as e:
        cause: BaseException = e
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((s for s in str(cause).splitlines() if s.strip()), type(cause).__name__)
        raise LowtideError(f"torch cannot export this model to ONNX: {reason[:200]}") from e


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on itself from the terminal; what it fails on is raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

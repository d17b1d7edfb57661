"""What a killed run continues from: trained tensors and optimiser state in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..errors import InputError
from ..tuning.adapter_files import read_metadata, read_tensors, refuse_infinite, write_tensors
from ..tuning.tuned import Tuned

RECORD, PLAIN, SCALER = "record", "plain", "scaler"


def write(
    path: Path,
    tuned: Tuned,
    optimizer: Optimizer,
    scaler: Any,
    record: dict[str, Any],
    averages: Sequence[Tensor] = (),
) -> None:
    """Write a checkpoint; a crash leaves the old one or the new one.

    Args:
        path: The file.
        tuned: What trained of it is stored, and nothing that is frozen.
        optimizer: Its state is stored; its learning rate is the schedule's business.
        scaler: Loss scaler of fp16, or None.
        record: What else to know; plain JSON.
        averages: Running averages of what trains.
    """
    tensors = {f"model/{key}": value for key, value in tuned.adapter_state().items()}
    tensors |= {f"average/{i}": value for i, value in enumerate(averages)}
    plain: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            kept: dict[str, Any] = tensors if isinstance(value, Tensor) else plain
            kept[f"optimiser/{index}/{name}"] = value
    scaling = scaler.state_dict() if scaler is not None else None
    header = {RECORD: record, PLAIN: plain, SCALER: scaling}
    write_tensors(path, tensors, {key: json.dumps(value) for key, value in header.items()})


def record_of(path: Path) -> dict[str, Any]:
    """Read what a checkpoint says of itself.

    Args:
        path: The file.

    Returns:
        The record it was written with.

    Raises:
        InputError: The file is no checkpoint of this version.
    """
    header = read_metadata(path)
    if not {RECORD, PLAIN, SCALER} <= header.keys():
        raise InputError(f"{path} is no checkpoint this version of lowtide can continue from")
    return json.loads(header[RECORD])


def read(
    path: Path,
    tuned: Tuned,
    optimizer: Optimizer,
    scaler: Any,
    averages: Sequence[Tensor] = (),
) -> None:
    """Put model, optimiser and scaler back to where they were.

    Args:
        path: The file.
        tuned: The same methods on the same backbone.
        optimizer: The same optimiser.
        scaler: Loss scaler of fp16, or None.
        averages: Running averages of what trains, written over.
    """
    tensors, header = read_tensors(path), read_metadata(path)
    refuse_infinite(
        path, {k: v for k, v in tensors.items() if k.startswith(("model/", "average/"))}
    )
    state: dict[int, dict[str, Any]] = {}
    model = {}
    for key, value in (tensors | json.loads(header[PLAIN])).items():
        kind, _, rest = key.partition("/")
        if kind == "model":
            model[rest] = value
        elif kind == "average":
            averages[int(rest)].copy_(value)
        else:
            index, _, name = rest.partition("/")
            state.setdefault(int(index), {})[name] = value
    tuned.load_adapter_state(model)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    if scaler is not None:
        scaler.load_state_dict(json.loads(header[SCALER]))

"""What a killed run continues from: trained tensors and optimiser state in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..errors import InputError, shown
from ..tuning.adapter_files import read_metadata, read_tensors, write_tensors
from ..tuning.finite import refuse_infinite
from ..tuning.tuned import Tuned
from ..values import Count, Within
from .records import Record
from .summary import Accuracy, Epoch, Score, Whole

VERSION = 1
"""Version of this layout; files of lowtide 0.1 have none in their header, and are of version 1."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord(Record):
    """What a training checkpoint says beside its tensors.

    Attributes:
        history: One record per finished epoch.
        measured_bytes: Measured peak of a step; 0 until known.
        data: Fingerprint of the data set.
        processes: How many processes shared the run; None in files of an earlier version.
        start_accuracy: Validation accuracy before the first update, where it was measured.
        start_score: The same of another task than classify.
        kept_epoch: The best epoch so far, 0 for the start; None where the last one is kept.
    """

    history: tuple[Epoch, ...]
    measured_bytes: Whole
    data: str
    processes: Count | None = None
    start_accuracy: Accuracy | None = None
    start_score: Score | None = None
    kept_epoch: Whole | None = None


@dataclass(frozen=True, kw_only=True)
class Header(Record):
    """The header of a training checkpoint; each field is one JSON text.

    Attributes:
        version: Version of the layout.
        record: What is known of the run.
        plain: The optimiser's state that is not tensors, by key.
        scaler: State of the loss scaler of fp16; None without one.
    """

    version: Annotated[int, Within(VERSION, VERSION)] = VERSION
    record: TrainingRecord
    plain: Mapping[str, object]
    scaler: Mapping[str, object] | None


def write(
    path: Path,
    tuned: Tuned,
    optimizer: Optimizer,
    scaler: GradScaler | None,
    record: TrainingRecord,
    averages: Sequence[Tensor] = (),
) -> None:
    """Write a checkpoint; a crash leaves the old one or the new one.

    Args:
        path: The file.
        tuned: What trained of it is stored, and nothing that is frozen.
        optimizer: Its state is stored; its learning rate is the schedule's business.
        scaler: Loss scaler of fp16, or None.
        record: What else to know of the run.
        averages: Running averages of what trains.
    """
    tensors = {f"model/{key}": value for key, value in tuned.adapter_state().items()}
    tensors |= {f"average/{i}": value for i, value in enumerate(averages)}
    plain: dict[str, object] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            kept: dict[str, Any] = tensors if isinstance(value, Tensor) else plain
            kept[f"optimiser/{index}/{name}"] = value
    scaling = scaler.state_dict() if scaler is not None else None
    header = Header(record=record, plain=plain, scaler=scaling).to_dict()
    write_tensors(path, tensors, {key: json.dumps(value) for key, value in header.items()})


def read_header(path: Path) -> Header:
    """Read the header of a checkpoint.

    Args:
        path: The file.

    Returns:
        The header, every field checked.

    Raises:
        InputError: The file is damaged, or is no checkpoint of this version.
    """
    texts = read_metadata(path)
    names = [f.name for f in fields(Header)]
    try:
        header = {name: json.loads(texts[name]) for name in names if name in texts}
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is damaged: its header holds what is no JSON: {e}") from e
    if header.get("version", VERSION) != VERSION:
        raise InputError(
            f"{path} is a checkpoint of version {shown(header['version'])}, and this lowtide goes"
            f" on from version {VERSION}: resume with the lowtide that wrote it"
        )
    try:
        return Header.from_dict(header)
    except InputError as e:
        raise InputError(f"training cannot continue from {path}: in its header {e}") from e


def read(
    path: Path,
    tuned: Tuned,
    optimizer: Optimizer,
    scaler: GradScaler | None,
    averages: Sequence[Tensor] = (),
) -> None:
    """Put model, optimiser and scaler back to where they were.

    Args:
        path: The file.
        tuned: The same methods on the same backbone.
        optimizer: The same optimiser.
        scaler: Loss scaler of fp16, or None.
        averages: Running averages of what trains, written over.

    Raises:
        InputError: The file is damaged, or of other options.
    """
    tensors, header = read_tensors(path), read_header(path)
    refuse_infinite(
        path, {k: v for k, v in tensors.items() if k.startswith(("model/", "average/"))}
    )
    state: dict[int, dict[str, object]] = {}
    model, found = {}, {}
    kept: dict[str, Any] = {**tensors, **header.plain}
    for key, value in kept.items():
        kind, _, rest = key.partition("/")
        index, _, name = rest.partition("/")
        if kind == "model":
            model[rest] = value
        elif kind == "average":
            found[rest] = value
        elif kind == "optimiser" and index.isdecimal() and name:
            state.setdefault(int(index), {})[name] = value
        else:
            raise InputError(
                f"{path} is no training checkpoint: {shown(key)} is neither model, average nor"
                " optimiser state"
            )
    _refuse_others(path, optimizer, scaler, averages, state, found, header.scaler)
    tuned.load_adapter_state(model)
    for i, average in enumerate(averages):
        average.copy_(found[str(i)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    if scaler is not None and header.scaler is not None:
        scaler.load_state_dict(dict(header.scaler))


def _refuse_others(
    path: Path,
    optimizer: Optimizer,
    scaler: object,
    averages: Sequence[Tensor],
    state: Mapping[int, object],
    found: Mapping[str, Tensor],
    scaling: object,
) -> None:
    """Refuse the checkpoint of a run with other options, before anything is copied."""
    shapes = {str(i): a.shape for i, a in enumerate(averages)}
    if {k: a.shape for k, a in found.items()} != shapes:
        raise InputError(
            f"{path} holds {len(found)} running averages, and this run has {len(shapes)}: their"
            " number and shapes must agree"
        )
    count = sum(len(g["params"]) for g in optimizer.param_groups)
    if beyond := [i for i in state if i >= count]:
        raise InputError(
            f"{path} holds the optimiser's state of parameter {beyond[0]}, and {count} train here"
        )
    if scaler is not None and scaling is None:
        raise InputError(f"{path} was written without fp16, and holds no loss scale to go on with")

"""What a killed run continues from: trained tensors and optimiser state in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..errors import InputError, shown
from ..tuning.adapter_files import read_metadata, read_tensors, refuse_infinite, write_tensors
from ..tuning.tuned import Tuned

RECORD, PLAIN, SCALER, VERSION = "record", "plain", "scaler", "version"
KINDS = {RECORD: (dict,), PLAIN: (dict,), SCALER: (dict, NoneType)}
NOW = 1
"""Version of this layout; files of lowtide 0.1 have none in their header, and are of version 1."""


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
    header = {RECORD: record, PLAIN: plain, SCALER: scaling, VERSION: NOW}
    write_tensors(path, tensors, {key: json.dumps(value) for key, value in header.items()})


def record_of(path: Path, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Read what a checkpoint says of itself.

    Args:
        path: The file.
        kinds: What the record holds, and of which types.

    Returns:
        The record it was written with.

    Raises:
        InputError: The file is no checkpoint of this version.
    """
    record = _header(path)[RECORD]
    _refuse_mistyped(path, record, kinds)
    return record


def _header(path: Path) -> dict[str, Any]:
    """Read the header of a checkpoint; every value is of its kind."""
    texts = read_metadata(path)
    try:
        header = {k: json.loads(texts[k]) for k in (*KINDS, VERSION) if k in texts}
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is damaged: its header holds what is no JSON: {e}") from e
    if header.get(VERSION, NOW) != NOW:
        raise InputError(
            f"{path} is a checkpoint of version {shown(header[VERSION])}, and this lowtide goes on"
            f" from version {NOW}: resume with the lowtide that wrote it"
        )
    _refuse_mistyped(path, header, KINDS)
    return header


def _refuse_mistyped(
    path: Path, found: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]
) -> None:
    for name, types in kinds.items():
        wanted = " or ".join("null" if t is NoneType else t.__name__ for t in types)
        if name not in found:
            raise InputError(
                f"{path} is no checkpoint this version of lowtide can continue from: expected"
                f" {name} ({wanted}) in its header, and found {', '.join(found) or 'nothing'}"
            )
        if type(found[name]) not in types:
            raise InputError(
                f"{path} is no checkpoint this version of lowtide can continue from: its {name} is"
                f" {shown(found[name])}, and not {wanted}"
            )


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

    Raises:
        InputError: The file is damaged, or of other options.
    """
    tensors, header = read_tensors(path), _header(path)
    refuse_infinite(
        path, {k: v for k, v in tensors.items() if k.startswith(("model/", "average/"))}
    )
    state: dict[int, dict[str, Any]] = {}
    model, found = {}, {}
    for key, value in (tensors | header[PLAIN]).items():
        kind, _, rest = key.partition("/")
        index, _, name = rest.partition("/")
        if kind == "model":
            model[rest] = value
        elif kind == "average":
            found[rest] = value
        elif kind == "optimiser" and index.isdecimal() and name:
            state.setdefault(int(index), {})[name] = value
        else:
            raise InputError(f"{path} is no checkpoint: it holds {shown(key)}")
    _refuse_others(path, optimizer, scaler, averages, state, found, header[SCALER])
    tuned.load_adapter_state(model)
    for i, average in enumerate(averages):
        average.copy_(found[str(i)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    if scaler is not None:
        scaler.load_state_dict(header[SCALER])


def _refuse_others(
    path: Path,
    optimizer: Optimizer,
    scaler: Any,
    averages: Sequence[Tensor],
    state: Mapping[int, Any],
    found: Mapping[str, Tensor],
    scaling: Any,
) -> None:
    """Refuse the checkpoint of a run with other options, before anything is copied."""
    shapes = {str(i): a.shape for i, a in enumerate(averages)}
    if {k: a.shape for k, a in found.items()} != shapes:
        raise InputError(
            f"{path} holds {len(found)} running averages, and this run has {len(shapes)}, or others"
        )
    count = sum(len(g["params"]) for g in optimizer.param_groups)
    if beyond := [i for i in state if i >= count]:
        raise InputError(
            f"{path} holds the optimiser's state of parameter {beyond[0]}, and {count} train here"
        )
    if scaler is not None and scaling is None:
        raise InputError(f"{path} was written without fp16, and holds no loss scale to go on with")

"""Adapter files in PEFT's layout: `adapter_config.json` beside `adapter_model.safetensors`.

Both formats are data; reading a file never imports or runs anything it names.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import InputError, UnknownName, shown
from .graft import Method, method_name
from .methods import METHODS
from .paths import read_json
from .values import read_fields

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LIBRARY = "lowtide"


def write_adapter(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write an adapter.

    Args:
        folder: Where to; made if missing.
        config: What to know before loading it; plain JSON.
        state: Everything that trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"library": LIBRARY, **config}, indent=2, sort_keys=True)
    write_tensors(folder / WEIGHTS, state)
    write_text(folder / CONFIG, text + "\n")


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an adapter.

    Args:
        folder: What `write_adapter` wrote to.

    Returns:
        Config and state.
    """
    return read_config(folder), read_tensors(folder / WEIGHTS)


def read_config(folder: Path) -> dict[str, Any]:
    """Read an adapter's config.

    Args:
        folder: What `write_adapter` wrote to.

    Returns:
        The config.

    Raises:
        InputError: There is none, or it is no lowtide adapter.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} holds no adapter: expected {CONFIG} and {WEIGHTS} in it")
    config = read_json(path)
    if not isinstance(config, dict) or config.get("library") != LIBRARY:
        raise InputError(f"{path} was not written by lowtide; peft loads its own adapters")
    return config


def describe(method: Method) -> dict[str, Any]:
    """Write a method as plain data.

    Args:
        method: The method.

    Returns:
        Its name and every option, as JSON holds them.
    """
    options = dataclasses.asdict(method)  # type: ignore[call-overload]
    return {"name": method_name(type(method)), **{k: _plain(v) for k, v in options.items()}}


def construct(description: Mapping[str, Any]) -> Method:
    """Make a method from plain data; the inverse of `describe`.

    Args:
        description: A name and options.

    Returns:
        The method.

    Raises:
        UnknownName: There is no such method, option or role.
        InputError: A value does not fit.
    """
    if not isinstance(description, Mapping):
        raise InputError(f"a method is a name and options, not {shown(description)}")
    options = dict(description)
    name = options.pop("name", "")
    if not isinstance(name, str) or name not in METHODS:
        raise UnknownName("method", name, METHODS)
    options = read_fields(METHODS[name], options, name)
    try:
        return METHODS[name](**options)
    except (TypeError, ValueError) as e:
        raise InputError(str(e)) from e


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file so that a crash leaves the old one or the new one.

    Args:
        path: Where to.
        tensors: By name.
        metadata: Strings for the header.
    """
    partial = path.with_name(f".{path.name}.partial")
    save_file({k: v.contiguous().cpu().clone() for k, v in tensors.items()}, partial, metadata)
    _replace(partial, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        Tensors by name.

    Raises:
        InputError: It is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    try:
        return load_file(path)
    except SafetensorError as e:
        raise InputError(f"{path} is damaged: {e}") from e


def read_metadata(path: Path) -> dict[str, str]:
    """Read the header strings of a safetensors file.

    Args:
        path: The file.

    Returns:
        What `write_tensors` was given.

    Raises:
        InputError: The file is damaged.
    """
    try:
        with safe_open(path, "pt") as f:
            return f.metadata() or {}
    except SafetensorError as e:
        raise InputError(f"{path} is damaged: {e}") from e


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old one or the new one.

    Args:
        path: Where to.
        text: Its content.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    _replace(partial, path)


def _replace(partial: Path, path: Path) -> None:
    with partial.open("rb") as f:
        os.fsync(f.fileno())
    partial.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return [_plain(v) for v in value] if isinstance(value, tuple) else value

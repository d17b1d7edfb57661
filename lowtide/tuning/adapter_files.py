"""Adapter files: `adapter_config.json` beside `adapter_model.safetensors`, as peft names them.

Both formats are data; reading a file never imports or runs anything it names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.method import Method, method_name
from ..core.outside import refuse_missing, source_of
from ..errors import InputError, LowtideError, shown
from ..families import SEPARATE
from ..methods import METHODS
from ..paths import read_json, whole, write_text
from ..values import read_fields
from .finite import refuse_infinite

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LIBRARY, CONTENT = "lowtide", "content_sha256"


def write_adapter(folder: Path, config: Mapping[str, object], state: Mapping[str, Tensor]) -> None:
    """Write an adapter.

    Args:
        folder: Where to; made if missing.
        config: What to know before loading it; plain JSON.
        state: Everything that trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"library": LIBRARY, CONTENT: content_hash(state), **config}
    text = json.dumps(content, indent=2, sort_keys=True)
    write_tensors(folder / WEIGHTS, state)
    write_text(folder / CONFIG, text + "\n")


def read_adapter(folder: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Read an adapter.

    Args:
        folder: What `write_adapter` wrote to.

    Returns:
        Config and state.

    Raises:
        InputError: A file is missing or damaged, or the two do not belong together.
    """
    config, path = read_config(folder), folder / WEIGHTS
    state = read_tensors(path)
    refuse_infinite(path, state)
    content = content_hash(state)
    if config.get(CONTENT, content) != content:
        raise InputError(
            f"{path} does not have the hash that {CONFIG} in the same folder records: one of the"
            " two files"
            " is damaged, or of another run"
        )
    return config, state


def content_hash(tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> str:
    """Hash tensors: names, dtypes, shapes and every byte.

    Args:
        tensors: By name; their order does not matter.
        header: Strings that are hashed as well.

    Returns:
        SHA-256, in hexadecimal.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name}\0{plain.dtype}\0{tuple(plain.shape)}\0".encode())
        digest.update(plain.view(-1).view(torch.uint8).numpy().data)
    for text in sorted((header or {}).items()):
        digest.update("\0".join(text).encode())
    return digest.hexdigest()


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
        raise InputError(f"{path} was not written by lowtide, whose runs this reads")
    return _as_written(config, folder / WEIGHTS)


def describe(method: Method) -> dict[str, object]:
    """Write a method as plain data.

    Args:
        method: The method.

    Returns:
        Its name and every option, as JSON holds them; of a method from outside the package also
        what `--import` takes.
    """
    options = dataclasses.asdict(method)  # type: ignore[call-overload]
    source = source_of(type(method))
    own = {"name": method_name(type(method)), **({"import": source} if source else {})}
    return own | {k: _plain(v) for k, v in options.items()}


def construct(description: Mapping[str, Any]) -> Method:
    """Make a method from plain data; the inverse of `describe`.

    Args:
        description: A name and options.

    Returns:
        The method.

    Raises:
        UnknownName: There is no such method, option or role.
        InputError: A value does not fit, or the method is from outside and not imported.
    """
    if not isinstance(description, Mapping):
        raise InputError(f"a method is a name and options, not {shown(description)}")
    options = dict(description)
    name, source = options.pop("name", ""), options.pop("import", None)
    refuse_missing(name, source)
    options = read_fields(METHODS[name], options, name)
    try:
        return METHODS[name](**options)
    except (TypeError, ValueError) as e:
        raise InputError(str(e)) from e


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file so that a crash leaves the old one or the new one.

    The header holds the hash of all this, which `read_tensors` holds it against.

    Args:
        path: Where to.
        tensors: By name.
        metadata: Strings for the header.

    Raises:
        LowtideError: It cannot be written, as on a full disk.
    """
    header = {"format": "pt", **(metadata or {})}
    header[CONTENT] = content_hash(tensors, header)
    plain = {k: v.contiguous().cpu().clone() for k, v in tensors.items()}
    with whole(path) as partial:
        try:
            save_file(plain, partial, header)
        except SafetensorError as e:
            raise LowtideError(f"{path} cannot be written: {e}") from e


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        Tensors by name.

    Raises:
        InputError: It is missing or damaged, or a tensor is not what was written.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as e:
        raise InputError(f"{path} is damaged: {e}") from e
    header = read_metadata(path)
    written = header.pop(CONTENT, None)
    if written is not None and written != content_hash(tensors, header):
        raise InputError(f"{path} is damaged: its tensors do not have the hash in its header")
    return tensors


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


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a safetensors file from its header.

    Args:
        path: The file.

    Returns:
        Shapes by name.

    Raises:
        InputError: It is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    try:
        with safe_open(path, "pt") as f:
            return {key: tuple(f.get_slice(key).get_shape()) for key in f.keys()}
    except SafetensorError as e:
        raise InputError(f"{path} is damaged: {e}") from e


def _as_written(config: dict[str, object], weights: Path) -> dict[str, object]:
    """Name what LoRA once adapted by default beside separate maps to q, k and v: all maps."""
    methods = config.get("methods")
    plain = [m for m in methods if isinstance(m, dict)] if isinstance(methods, list) else []
    for method in plain if weights.is_file() else ():
        if method.get("name") == "lora" and method.get("roles") == []:
            paths = {k.partition("/")[0] for k in read_shapes(weights) if "/lora/" in k}
            leaves = {path.rpartition(".")[2] for path in paths}
            if any(leaves & {*names} and leaves - {*names} for names in SEPARATE):
                method["roles"] = ["fc1", "fc2", "linear"]
    return config


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return [_plain(v) for v in value] if isinstance(value, tuple) else value

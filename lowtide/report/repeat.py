"""The command that repeats a run."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ..core.method import method_name
from ..core.outside import source_of
from ..errors import UnknownName
from ..training.config import RunConfig
from ..training.options import config_of


def repeat(config: Mapping[str, object], processes: int = 1) -> str:
    """Compose the command that trains with a config: the options that are not the defaults.

    Args:
        config: What `RunConfig.to_dict` gave when the run was made.
        processes: How many processes shared the run.

    Returns:
        The command, quoted for a POSIX shell.
    """
    wanted = RunConfig.from_dict(config)
    options = _options(wanted, wanted.preset)
    if options is None:  # what the preset switches on, or a preset of another version
        options = _options(wanted, None) or []
    start = ["lowtide"]
    if processes > 1:
        start = ["torchrun", f"--nproc_per_node={processes}", "-m", "lowtide"]
    return shlex.join([*start, "train", *options])


def _options(wanted: RunConfig, preset: str | None) -> list[str] | None:
    """List the options; None where they cannot say it over this preset."""
    method = method_name(type(wanted.method))
    try:
        start = _start(preset, method)
    except UnknownName:
        return None
    options = [*_option("--model", wanted.model), *_option("--data", wanted.data)]
    options += _option("--method", method)
    options += _option("--import", source) if (source := source_of(type(wanted.method))) else []
    options += _option("--preset", preset) if preset else []
    for flag, field, value, default in _pairs(wanted, start):
        if value == default:
            continue
        if field.default is False:
            if not value:
                return None
            options.append(flag)
        else:
            options += _option(flag, _text(value))
    return options


@functools.cache
def _start(preset: str | None, method: str) -> RunConfig:
    """What a preset and a method alone mean."""
    return config_of({"model": "any", "data": "any", "method": method, "preset": preset})


def _pairs(wanted: RunConfig, start: RunConfig) -> Iterator[tuple[str, Any, object, object]]:
    """Give flag, field, value and default of every option that may differ."""
    for f in dataclasses.fields(wanted):
        if f.name not in {"model", "data", "method", "preset"}:
            flag = f"--{f.name.replace('_', '-')}"
            yield flag, f, getattr(wanted, f.name), getattr(start, f.name)
    for f in dataclasses.fields(wanted.method):  # type: ignore[arg-type]
        value, default = getattr(wanted.method, f.name), getattr(start.method, f.name)
        yield f"--method.{f.name}", f, value, default


def _option(flag: str, value: str) -> list[str]:
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def _text(value: object) -> str:
    """Write a value as the command line reads it."""
    return value if isinstance(value, str) else json.dumps(value)

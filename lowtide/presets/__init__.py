"""Published recipes as named options: one JSON file per method and backbone, one row per task.

Imports errors, data.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, UnknownName, shown
from .tasks import SUITES as SUITES


@dataclass(frozen=True)
class Recipe:
    """One file: its source, and the options it sets.

    Attributes:
        name: The file's name, which is the first part of the names of its presets.
        source: Paper or code.
        differs: Where a run with these options is not what the authors ran.
        presets: Options of `RunConfig` by `suite/task`, those of the method as `method.NAME`.
    """

    name: str
    source: str
    differs: tuple[str, ...]
    presets: Mapping[str, Mapping[str, Any]]


@functools.cache
def recipes() -> tuple[Recipe, ...]:
    """Read the files beside this module.

    Returns:
        One recipe per file, in order of name.
    """
    return tuple(_read(path) for path in sorted(Path(__file__).parent.glob("*.json")))


@functools.cache
def presets() -> dict[str, Mapping[str, object]]:
    """List every preset.

    Returns:
        Options by name, `recipe/suite/task`.
    """
    return {f"{r.name}/{key}": options for r in recipes() for key, options in r.presets.items()}


def preset(name: str) -> tuple[str, dict[str, Any]]:
    """Look a preset up.

    Args:
        name: Its name; a task's other names do as well, as do `-` for `_` and `dtl+` for
            `dtl_plus`.

    Returns:
        The name it is listed under, and its options as `RunConfig.from_dict` takes them.

    Raises:
        UnknownName: There is no such preset.
    """
    plain = name.lower().replace("-", "_").replace("+", "_plus")
    recipe, _, rest = plain.partition("/")
    suite, _, task = rest.partition("/")
    listed = f"{recipe}/{suite}/{_listed(SUITES.get(suite, {}), task)}"
    if listed not in presets():
        error = unknown(plain)
        raise error
    options = presets()[listed]
    method = {k.partition(".")[2]: v for k, v in options.items() if k.startswith("method.")}
    others = {k: v for k, v in options.items() if not k.startswith("method.")}
    return listed, {**others, "method": method}


def over_preset(name: str, given: Mapping[str, object]) -> dict[str, Any]:
    """Lay options over those of a preset; the same method keeps the preset's other options.

    Args:
        name: The preset.
        given: Options that override it.

    Returns:
        Options as `RunConfig.from_dict` takes them, with the name the preset is listed under.
    """
    listed, options = preset(name)
    method = named(given.get("method", {}))
    if method.get("name", options["method"]["name"]) == options["method"]["name"]:
        method = options["method"] | method
    return {**options, **given, "method": method, "preset": listed}


def named(method: object) -> dict[str, Any]:
    """Give a method's description as a mapping.

    Args:
        method: Its name, or its name and options.

    Returns:
        Name and options.

    Raises:
        InputError: It is neither.
    """
    if isinstance(method, str):
        return {"name": method}
    if not isinstance(method, Mapping):
        raise InputError(f"method must be a name, or a name and its options, not {shown(method)}")
    return dict(method)


def unknown(name: str) -> UnknownName:
    """Refuse the name of a preset that does not exist.

    Args:
        name: Matches no preset.

    Returns:
        The error, with the nearest presets, or the recipes where none is near.
    """
    near = difflib.get_close_matches(name, presets(), cutoff=0.5)
    return UnknownName("preset", name, near or [f"{r.name}/SUITE/TASK" for r in recipes()])


def _listed(tasks: Mapping[str, tuple[str, ...]], given: str) -> str:
    """Find the task of a name, underscores or none."""
    wanted = given.replace("_", "")
    known = ((t, name) for t, others in tasks.items() for name in (t, *others))
    return next((t for t, name in known if name.replace("_", "") == wanted), given)


def _read(path: Path) -> Recipe:
    content = json.loads(path.read_text())
    found = {}
    for suite, rows in content["suites"].items():
        shared = content["options"] | rows.get("options", {})
        columns = rows.get("columns", [])
        for task, values in rows.get("tasks", dict.fromkeys(SUITES[suite], [])).items():
            found[f"{suite}/{task}"] = shared | dict(zip(columns, values, strict=True))
    return Recipe(path.stem, content["source"], tuple(content["differs"]), found)

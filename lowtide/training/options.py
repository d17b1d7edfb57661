"""Turn dataclasses into command-line options, and options into dataclasses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.outside import refuse_missing
from ..errors import InputError, UnknownName
from ..methods import METHODS
from ..presets import named, over_preset
from ..tuning.adapter_files import describe
from ..values import hints, options, options_help, read
from .config import RunConfig, read_yaml
from .parser import Parser


def add_fields(parser: Parser, cls: type, prefix: str = "") -> None:
    """Add one option per field of a dataclass; its docstring is the help.

    Args:
        parser: Gets the options.
        cls: The dataclass, documented under `Attributes:`.
        prefix: Put before each name, with a dot.
    """
    kinds, texts = hints(cls), options_help(cls)
    for f in options(cls):
        if dataclasses.is_dataclass(f.default):
            continue
        flag = f"--{prefix}{f.name.replace('_', '-') if not prefix else f.name}"
        text = texts.get(f.name, "")
        default = None if f.default is dataclasses.MISSING else f.default
        alone: Any = {"nargs": "?", "const": "true"} if kinds[f.name] is bool else {}
        parser.add_argument(flag, type=kinds[f.name], default=default, help=text, **alone)


def method_options(args: Sequence[str]) -> tuple[list[str], str | None]:
    """Find the method's name among arguments.

    Args:
        args: A command's arguments; `--method NAME` is short for `--method.name NAME`.

    Returns:
        The arguments with the long form, and the name, if there is one.
    """
    long = [re.sub("^--method(?==|$)", "--method.name", arg) for arg in args]
    return long, value_of(long, "--method.name")


def add_method(parser: Parser, name: str) -> None:
    """Add the options of one method.

    Args:
        parser: Gets `--method` and `--method.OPTION`.
        name: The method.

    Raises:
        UnknownName: There is no such method.
    """
    if name not in METHODS:
        raise UnknownName("method", name, METHODS)
    parser.add_argument(
        "--method.name",
        type=str,
        default=name,
        help=f"What trains: {' '.join(sorted(METHODS))}. Each has options of its own, shown with"
        " --method NAME --help.",
    )
    add_fields(parser, METHODS[name], "method.")


OWN = frozenset(f.name for f in dataclasses.fields(RunConfig))
"""Options of a run; the others belong to a command."""
USUAL = describe(RunConfig.method)
"""What trains where no method is named."""


def run_config(
    parser: Parser, args: Sequence[str], usual: Mapping[str, object] | None = None
) -> tuple[RunConfig, dict[str, Any]]:
    """Read a run's config from a preset, from a file over it, and from arguments over both.

    A file that holds every option, as the one in a run folder, does without the preset it names.

    Args:
        parser: Knows the command's own options; gets the run's.
        args: The command's arguments.
        usual: Defaults of the command in place of a run's own.

    Returns:
        The config, and the command's own options.

    Raises:
        InputError: A method is described without its name.
    """
    args, name = method_options(args)
    path = value_of(args, "--config")
    given = {} if path is None else read_yaml(Path(path))
    recipe = value_of(args, "--preset") or (None if OWN <= given.keys() else given.get("preset"))
    if recipe is not None:
        given = over_preset(read("preset", str, recipe), given)
    given = {**(usual or {}), **given}
    method = named(given.get("method", USUAL if name is None else name))
    if name is not None and name != method.get("name"):
        method = {"name": name}  # another method's options mean nothing to this one
    values = _read(parser, args, {**given, "method": method})
    return RunConfig.from_dict({k: v for k, v in values.items() if k in OWN}), {
        k: v for k, v in values.items() if k not in OWN
    }


def config_of(given: Mapping[str, object]) -> RunConfig:
    """Read a run's config from options alone, as from a file.

    Args:
        given: Options by name; a preset among them is laid under the others.

    Returns:
        The config, each value of the kind its option wants.
    """
    if given.get("preset") is not None:
        given = over_preset(read("preset", str, given["preset"]), given)
    method = named(given.get("method", USUAL))
    return RunConfig.from_dict(_read(Parser("train", ""), [], {**given, "method": method}))


def _read(parser: Parser, args: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a run's options once its method is known."""
    described = dict(given["method"])
    name, source = described.get("name"), described.pop("import", None)
    if name is None:
        raise InputError(f"method needs a name: one of {', '.join(sorted(METHODS))}")
    refuse_missing(read("method", str, name), source)
    given = {**given, "method": described}
    own = parser.options()
    add_method(parser, name)
    add_fields(parser, RunConfig)
    return parser.read(args, given, unset=own) | {"preset": given.get("preset")}


def value_of(args: Sequence[str], flag: str) -> str | None:
    """Look an option up before there is a parser that knows the others.

    Args:
        args: A command's arguments.
        flag: The option, as `--flag VALUE` or `--flag=VALUE`.

    Returns:
        Its last value, or None where it is not given.

    Raises:
        InputError: The value is empty.
    """
    found = None
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(f"{flag}="):
            found = arg.partition("=")[2]
    return None if found is None else read(flag.replace("--method.name", "--method"), str, found)

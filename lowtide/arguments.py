"""Turn dataclasses into command-line options, and options into dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from docstring_parser import parse
from jsonargparse import ArgumentError, ArgumentParser

from .config import RunConfig, read_yaml
from .errors import InputError, UnknownName
from .methods import METHODS
from .presets import named, over_preset
from .site import Role


class Parser(ArgumentParser):
    """jsonargparse, with every refusal as one `InputError` that offers the nearest name."""

    def __init__(self, command: str, description: str) -> None:
        """Start the parser of one command.

        Args:
            command: Its name.
            description: The first lines of its help.
        """
        super().__init__(prog=f"lowtide {command}", description=description, exit_on_error=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse.

        Args:
            message: What is wrong.
            ex: What raised it.

        Raises:
            InputError: Always.
        """
        raise InputError(self._one_line(message)) from ex

    def format_help(self, formatter: Any = None) -> str:
        """Write the help.

        Args:
            formatter: Lays it out.

        Returns:
            jsonargparse's text, with `--method` spelt as users do.
        """
        return super().format_help(formatter).replace("--method.name", "--method")

    def read(self, args: Sequence[str], given: dict[str, Any] | None = None) -> dict[str, Any]:
        """Parse arguments.

        Args:
            args: The command's arguments.
            given: Options from a file, which arguments override.

        Returns:
            Option values by name, those in dots nested.

        Raises:
            UnknownName: There is no such option in `given`.
        """
        flat = _flatten(given or {})
        for name in flat:
            if name not in self.options():
                raise UnknownName("option", name, self.options())
        try:
            self.set_defaults(flat)
            return self.parse_args(list(args)).as_dict()
        except ArgumentError as e:
            self.error(str(e), e)

    def options(self) -> list[str]:
        """List the options.

        Returns:
            Their names, as in a config file.
        """
        return [a.dest for a in self._actions if a.dest != "help"]

    def _one_line(self, message: str) -> str:
        line = re.sub(r"\s+", " ", message).strip()
        stray = re.search(r"[Uu]nrecognized arguments: (--[\w.-]+)", line)
        if stray is None:
            return line
        flags = [f for a in self._actions for f in a.option_strings] + ["--method"]
        near = difflib.get_close_matches(stray[1], flags, n=3, cutoff=0.5)
        return f"unknown option {stray[1]}" + (
            f": did you mean {' or '.join(near)}?" if near else ""
        )


def add_fields(parser: Parser, cls: type, prefix: str = "") -> None:
    """Add one option per field of a dataclass; its docstring is the help.

    Args:
        parser: Gets the options.
        cls: The dataclass, documented under `Attributes:`.
        prefix: Put before each name, with a dot.
    """
    hints = typing.get_type_hints(cls)
    attributes = {p.arg_name: p.description for p in parse(cls.__doc__ or "").params}
    for f in dataclasses.fields(cls):
        flag = f"--{prefix}{f.name.replace('_', '-') if not prefix else f.name}"
        text = (attributes.get(f.name) or "").replace("\n", " ")
        required = f.default is dataclasses.MISSING
        if f.default is False:
            parser.add_argument(flag, action="store_true", help=text)
        elif not dataclasses.is_dataclass(f.default):
            default = None if required else f.default
            parser.add_argument(flag, type=_spelt(hints[f.name]), default=default, help=text)


def _spelt(hint: Any) -> Any:
    """Take roles as they are spelt, `qkv`; jsonargparse would want the enum's own names."""
    return tuple[str, ...] if hint == tuple[Role, ...] else hint


def method_options(args: Sequence[str]) -> tuple[list[str], str | None]:
    """Find the method's name among arguments.

    Args:
        args: A command's arguments; `--method NAME` is short for `--method.name NAME`.

    Returns:
        The arguments with the long form, and the name, if there is one.
    """
    long, name = [], None
    for i, arg in enumerate(args):
        if arg == "--method" or arg.startswith("--method="):
            arg = arg.replace("--method", "--method.name", 1)
        long.append(arg)
        if arg.startswith("--method.name="):
            name = arg.partition("=")[2]
        elif arg == "--method.name" and i + 1 < len(args):
            name = args[i + 1]
    return long, name


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


def run_config(parser: Parser, args: Sequence[str]) -> tuple[RunConfig, dict[str, Any]]:
    """Read a run's config from a preset, from a file over it, and from arguments over both.

    A file that holds every option, as the one in a run folder, does without the preset it names.

    Args:
        parser: Knows the command's own options; gets the run's.
        args: The command's arguments.

    Returns:
        The config, and the command's own options.

    Raises:
        InputError: A method is described without its name.
    """
    args, name = method_options(args)
    path = value_of(args, "--config")
    given = {} if path is None else read_yaml(Path(path))
    own = {f.name for f in dataclasses.fields(RunConfig)}
    recipe = value_of(args, "--preset") or (None if own <= given.keys() else given.get("preset"))
    if recipe is not None:
        given = over_preset(recipe, given)
    method = named(given.get("method", "lora"))
    if name is not None and name != method.get("name"):
        method = {"name": name}  # another method's options mean nothing to this one
    values = _read(parser, args, {**given, "method": method})
    return RunConfig.from_dict({k: v for k, v in values.items() if k in own}), {
        k: v for k, v in values.items() if k not in own
    }


def config_of(given: Mapping[str, Any]) -> RunConfig:
    """Read a run's config from options alone, as from a file.

    Args:
        given: Options by name; a preset among them is laid under the others.

    Returns:
        The config, each value of the kind its option wants.
    """
    if given.get("preset") is not None:
        given = over_preset(given["preset"], given)
    method = named(given.get("method", "lora"))
    return RunConfig.from_dict(_read(Parser("train", ""), [], {**given, "method": method}))


def _read(parser: Parser, args: Sequence[str], given: dict[str, Any]) -> dict[str, Any]:
    """Parse a run's options once its method is known."""
    name = given["method"].get("name")
    if name is None:
        raise InputError(f"method needs a name: one of {', '.join(sorted(METHODS))}")
    add_method(parser, str(name))
    add_fields(parser, RunConfig)
    return parser.read(args, given) | {"preset": given.get("preset")}


def value_of(args: Sequence[str], flag: str) -> str | None:
    """Look an option up before there is a parser that knows the others.

    Args:
        args: A command's arguments.
        flag: The option, as `--flag VALUE` or `--flag=VALUE`.

    Returns:
        Its value, or None where it is not given.
    """
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2]
    return None


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat

"""Turn dataclasses into command-line options, and options into dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InputError, UnknownName, shown
from ..methods import METHODS
from ..presets import named, over_preset
from ..values import hints, options, options_help, read, words
from .config import RunConfig, read_yaml

METHOD = "method.name"


class Parser(argparse.ArgumentParser):
    """argparse, which only finds the options; `values.read` reads them, from wherever they come.

    Every refusal is one `InputError` that offers the nearest name.
    """

    def __init__(self, command: str, description: str) -> None:
        """Start the parser of one command.

        Args:
            command: Its name.
            description: The first lines of its help.
        """
        super().__init__(
            prog=f"lowtide {command}",
            description=description,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            exit_on_error=False,
        )
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf|nan)")
        self._hints: dict[str, Any] = {}
        self._many: set[str] = set()
        self._defaults_of: dict[str, Any] = {}

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Add an option.

        Args:
            *names: How it is spelt.
            **options: As argparse takes them; `type` is a type that `values.read` knows, by default
                text, or for an option that takes no value a truth.

        Returns:
            argparse's record of it.
        """
        switch = options.get("action") == "store_true"
        hint = options.pop("type", bool if switch else str)
        default = options.pop("default", False if switch else None)
        if options.get("action") in {"help", "version"}:
            return super().add_argument(*names, default=argparse.SUPPRESS, **options)
        if not switch:
            options.setdefault("metavar", words(hint).upper() if names[0][0] == "-" else None)
        text = options.pop("help", "").replace("%", "%%")
        if default not in (None, False, []) and "default" not in text:
            text += f" By default {default}.".replace("%", "%%")
        action = super().add_argument(*names, default=argparse.SUPPRESS, help=text, **options)
        self._hints[action.dest] = hint
        self._defaults_of[action.dest] = default
        if options.get("nargs") in {"+", "*"}:
            self._many.add(action.dest)
        return action

    def error(self, message: str) -> NoReturn:
        """Refuse.

        Args:
            message: What argparse says is wrong.

        Raises:
            InputError: Always.
        """
        said = message.replace("--method.name", "--method")
        if wanting := re.match(r"argument ([^:]+): expected", said):
            raise InputError(f"{wanting[1].split('/')[0]} needs a value")
        if missing := re.match(r"the following arguments are required: (.*)", said):
            verb = "are" if "," in missing[1] else "is"
            raise InputError(f"{missing[1]} {verb} required")
        if idle := re.match(r"argument ([^:]+): ignored explicit argument (.*)", said):
            raise InputError(f"{idle[1]} takes no value, not {idle[2]}")
        raise InputError(" ".join(said.split()))

    def read(
        self,
        args: Sequence[str],
        given: Mapping[str, Any] | None = None,
        *,
        unset: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Parse arguments.

        Args:
            args: The command's arguments.
            given: Options from a file, which arguments override.
            unset: Options that only arguments may give.

        Returns:
            Option values by name, those in dots nested.

        Raises:
            InputError: A value does not fit.
            UnknownName: There is no such option.
        """
        flat = flatten(given or {})
        allowed = [name for name in self._hints if name not in unset]
        for name in flat:
            if name in unset:
                raise InputError(f"{name} is an argument of the command, no option of a file")
            if name not in allowed:
                raise UnknownName("option", name, allowed)
        try:
            found, stray = self.parse_known_args(list(args))
        except argparse.ArgumentError as e:
            self.error(str(e))
        if stray:
            raise InputError(self._stray(stray[0]))
        values = dict(self._defaults_of)
        values |= {name: read(name, self._hints[name], value) for name, value in flat.items()}
        for name, text in vars(found).items():
            values[name] = self._one(name, text)
        return _nested(values)

    def options(self) -> list[str]:
        """List the options.

        Returns:
            Their names, as in a config file.
        """
        return list(self._hints)

    def _one(self, name: str, text: Any) -> Any:
        flag = next(
            (a.option_strings[0] for a in self._actions if a.dest == name and a.option_strings),
            name,
        ).replace("--method.name", "--method")
        if name in self._many:
            return [read(flag, self._hints[name], item) for item in text]
        return read(flag, self._hints[name], text)

    def _stray(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected argument {shown(word)}"
        flag = word.partition("=")[0]
        known = [f for a in self._actions for f in a.option_strings if f != "--method.name"]
        known += ["--method"] if METHOD in self._hints else []
        near = difflib.get_close_matches(flag, known, n=3, cutoff=0.5)
        return f"unknown option {flag}" + (f": did you mean {' or '.join(near)}?" if near else "")

    def format_help(self) -> str:
        """Write the help.

        Returns:
            argparse's text, with `--method` spelt as users do.
        """
        return super().format_help().replace("--method.name", "--method")


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
    recipe = value_of(args, "--preset") or (None if OWN <= given.keys() else given.get("preset"))
    if recipe is not None:
        given = over_preset(read("preset", str, recipe), given)
    method = named(given.get("method", "lora"))
    if name is not None and name != method.get("name"):
        method = {"name": name}  # another method's options mean nothing to this one
    values = _read(parser, args, {**given, "method": method})
    return RunConfig.from_dict({k: v for k, v in values.items() if k in OWN}), {
        k: v for k, v in values.items() if k not in OWN
    }


def config_of(given: Mapping[str, Any]) -> RunConfig:
    """Read a run's config from options alone, as from a file.

    Args:
        given: Options by name; a preset among them is laid under the others.

    Returns:
        The config, each value of the kind its option wants.
    """
    if given.get("preset") is not None:
        given = over_preset(read("preset", str, given["preset"]), given)
    method = named(given.get("method", "lora"))
    return RunConfig.from_dict(_read(Parser("train", ""), [], {**given, "method": method}))


def _read(parser: Parser, args: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a run's options once its method is known."""
    name = given["method"].get("name")
    if name is None:
        raise InputError(f"method needs a name: one of {', '.join(sorted(METHODS))}")
    own = parser.options()
    add_method(parser, read("method", str, name))
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


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give nested options flat names.

    Args:
        values: Options of a file; `method` may hold its own.

    Returns:
        Values by name, `method.rank` for an option of the method.

    Raises:
        InputError: A name is no text, is given twice, or an option holds options.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise InputError(f"the name of an option must be text, not {shown(name)}")
        inner = {f"method.{k}": v for k, v in value.items()} if _is_method(name, value) else None
        for key, held in ({name: value} if inner is None else inner).items():
            if key in flat:
                raise InputError(f"{key} is given twice")
            flat[key] = held
    return flat


def _is_method(name: str, value: object) -> bool:
    return name == "method" and isinstance(value, dict)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        outer, dot, inner = name.partition(".")
        if dot:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[name] = value
    return nested

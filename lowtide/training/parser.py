"""The parser of a command: argparse finds the options, `values.read` reads them."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ..errors import InputError, UnknownName, shown
from ..values import read, words

METHOD = "method.name"


class Parser(argparse.ArgumentParser):
    """An argparse parser whose values are read and checked by `values.read`.

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
        self._hints: dict[str, object] = {}
        self._many: set[str] = set()
        self._defaults_of: dict[str, object] = {}

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
        """Raise an argument error as an `InputError`.

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
        given: Mapping[str, object] | None = None,
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

    def _one(self, name: str, text: Any) -> object:
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
        """Write the help, with `--method` spelt as users do."""
        return super().format_help().replace("--method.name", "--method")


def flatten(values: Mapping[str, Any]) -> dict[str, object]:
    """Give nested options flat names.

    Args:
        values: Options of a file; `method` may hold its own.

    Returns:
        Values by name, `method.rank` for an option of the method.

    Raises:
        InputError: A name is no text, is given twice, or an option holds options.
    """
    flat: dict[str, object] = {}
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


def _nested(values: Mapping[str, object]) -> dict[str, object]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        outer, dot, inner = name.partition(".")
        if dot:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[name] = value
    return nested

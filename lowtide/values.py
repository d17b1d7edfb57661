"""Types and bounds of options, and one error message for every value outside them.

An option is declared once, as the type of a dataclass's field: `Annotated[float, Within(0, 1)]`.
The command line, config files, suites, adapters and Python are held to it alike.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from docstring_parser import parse

from .errors import InputError, UnknownName, shown

MANY = 1_000_000
"""Bound of counts that have no other."""
SEEDS = 2**32 - 1
"""The largest seed that every library takes."""


@dataclass(frozen=True)
class Within:
    """Bounds of a number.

    Attributes:
        low: The smallest, or what it must be above.
        high: The largest, or what it must be below.
        above: Whether `low` itself is too small.
        below: Whether `high` itself is too large.
        zero: Whether 0 will do as well, which switches the thing off.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    zero: bool = False

    def holds(self, value: float) -> bool:
        """Tell whether a number is within.

        Args:
            value: The number.

        Returns:
            Whether it is.
        """
        enough = value > self.low if self.above else value >= self.low
        little = value < self.high if self.below else value <= self.high
        return (enough and little) or (self.zero and value == 0)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'from'} {_digits(self.low)}"
        high = f"{'below' if self.below else 'to'} {_digits(self.high)}"
        return f"{'0, or ' if self.zero else ''}{low} {high}"


Count = Annotated[int, Within(1, MANY)]
Seed = Annotated[int, Within(0, SEEDS)]
Side = Annotated[int, Within(1, 16_384)]
"""Side of an image, in pixels."""
Share = Annotated[float, Within(0, 1, below=True)]
"""A rate of dropout, smoothing or decay: at 1 nothing would be left."""
Width = Annotated[int, Within(1, 4096)]
"""A rank, or another width of what a method adds."""
Index = Annotated[int, Within(0, 4096)]
"""A number of blocks or layers, or which of them."""
Ratio = Annotated[float, Within(1e-6, 1e6)]
Scale = Annotated[float, Within(-1e6, 1e6)]
_Cuda = Literal["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cuda:5", "cuda:6", "cuda:7"]
Device = Literal["auto", "cpu", "cuda", "mps", _Cuda]
"""Where to compute; another machine may have what this one has not."""


def read(name: str, hint: object, given: object) -> Any:
    """Read a value.

    Args:
        name: Of the option, as the user wrote it.
        hint: What it may be.
        given: Text of a command line, or what a file or a caller holds.

    Returns:
        The value, of the hint's type.

    Raises:
        InputError: It is no such value; the message says what would be.
        UnknownName: It is none of the names that would do.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(name, args[0], args[1], given)
    if origin in {types.UnionType, Union}:
        (inner,) = (a for a in args if a is not type(None))
        return None if given is None or given == "null" else read(name, inner, given)
    if origin is Literal:
        given = "no" if given is False else given  # which is how YAML reads it
        if given not in args:
            raise UnknownName(name, given, map(str, args))
        return given
    if origin is tuple:
        return tuple(read(name, args[0], item) for item in _items(name, given))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _member(name, hint, given)
    if hint in READERS:
        return READERS[hint](name, given)
    return given


def read_fields(cls: type, given: Mapping[str, object], what: str = "") -> dict[str, Any]:
    """Read some of a dataclass's fields.

    Args:
        cls: The dataclass.
        given: Values by name.
        what: What the values belong to, for the message.

    Returns:
        The same, each of its field's type.

    Raises:
        UnknownName: There is no such field.
        InputError: A value does not fit.
    """
    known = hints(cls)
    for name in given:
        if name not in known:
            raise UnknownName(f"option of {what}" if what else "option", name, known)
    return {n: read(f"{what} {n}".strip(), known[n], v) for n, v in given.items()}


def options(cls: type) -> list[dataclasses.Field[object]]:
    """List the fields of a dataclass that are options.

    Args:
        cls: The dataclass.

    Returns:
        Its own fields, then those it shares with others, which are keyword-only.
    """
    return sorted(dataclasses.fields(cls), key=lambda f: f.kw_only is True)


def options_help(cls: type) -> dict[str, str]:
    """Read the help of each option from the docstrings of a dataclass and its bases.

    Args:
        cls: The dataclass, documented under `Attributes:`.

    Returns:
        A text for each field that has one.
    """
    texts: dict[str, str] = {}
    for kind in reversed(cls.__mro__):
        said = parse(kind.__dict__.get("__doc__") or "").params
        texts |= {p.arg_name: " ".join((p.description or "").split()) for p in said}
    return texts


@functools.cache
def hints(cls: type) -> dict[str, object]:
    """Give the type of each field of a dataclass.

    Args:
        cls: The dataclass.

    Returns:
        Types with bounds, by field.
    """
    found = typing.get_type_hints(cls, include_extras=True)
    return {f.name: found[f.name] for f in dataclasses.fields(cls)}


def words(hint: object) -> str:
    """Describe the values that a type allows.

    Args:
        hint: The type of the option.

    Returns:
        A few words, such as `a whole number from 1 to 8`.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{words(args[0])} {args[1]}"
    if origin in {types.UnionType, Union}:
        return words(next(a for a in args if a is not type(None)))
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin is tuple:
        return f"[{words(args[0])}, ...]"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "a " + hint.__name__.lower()
    return KINDS.get(hint, "a value")


def _bounded(name: str, hint: object, bounds: Within, given: object) -> object:
    value = READERS[hint](name, given, f" {bounds}")
    if not bounds.holds(value):
        raise _refused(name, f"{KINDS[hint]} {bounds}", given)
    return value


def _refused(name: str, wanted: str, given: object) -> InputError:
    said = "nothing" if given is None else shown(given) if not isinstance(given, str) else given
    return InputError(f"{name} must be {wanted}, not {said if len(said) <= 90 else shown(given)}")


def _whole(name: str, given: object, bounds: str = "") -> int:
    if isinstance(given, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", given):
        return int(given)
    if isinstance(given, float) and given.is_integer():
        return int(given)
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    raise _refused(name, f"{KINDS[int]}{bounds}", given)


def _number(name: str, given: Any, bounds: str = "") -> float:
    text = isinstance(given, str) and given.isascii() and "_" not in given and len(given) < 400
    if text or (isinstance(given, int | float) and not isinstance(given, bool)):
        try:
            value = float(given)
        except (ValueError, OverflowError):
            value = math.nan
        if math.isfinite(value):
            return value
    raise _refused(name, f"{KINDS[float]}{bounds}", given)


def _truth(name: str, given: object) -> bool:
    if isinstance(given, bool):
        return given
    word = given.strip().lower() if isinstance(given, str) else ""
    if word not in TRUTH:
        raise _refused(name, "true or false", given)
    return TRUTH[word]


def _text(name: str, given: object) -> str:
    if not isinstance(given, str):
        hint = "; put it in quotes" if isinstance(given, int | float) else ""
        raise InputError(f"{name} must be text, not {_said(given)}{hint}")
    if not given.strip():
        raise InputError(f"{name} is empty; is a variable not set?")
    if "\0" in given:
        raise InputError(f"{name} holds a NUL character: {shown(given)}")
    return given


def _said(given: object) -> str:
    return "nothing" if given is None else shown(given)


def _items(name: str, given: object) -> list[object]:
    if isinstance(given, list | tuple):
        return list(given)
    if not isinstance(given, str):
        raise InputError(f"{name} must be a list such as [a, b], not {_said(given)}")
    if not given.strip():
        raise InputError(f"{name} is empty; is a variable not set? [] is a list of nothing")
    inner = given.strip().removeprefix("[").removesuffix("]").strip()
    return [item.strip().strip("'\"") for item in inner.split(",")] if inner else []


def _member(name: str, kind: type[Enum], given: object) -> Enum:
    try:
        return kind(given)
    except ValueError:
        raise UnknownName(kind.__name__.lower(), given, [str(m.value) for m in kind]) from None


def _digits(bound: float) -> str:
    return f"{bound:g}" if abs(bound) > 1e15 or bound % 1 else str(int(bound))


KINDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}
READERS: dict[object, Callable[..., Any]] = {
    int: _whole,
    float: _number,
    bool: _truth,
    str: _text,
}
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

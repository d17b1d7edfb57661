"""Frozen dataclasses for the content of files: nested plain data, every field checked."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, NamedTuple, Self, Union, get_args, get_origin

from ..errors import InputError, shown
from ..values import hints, read, words


class Misfit(InputError):
    """A field of a file is not what it should be."""

    def __init__(self, path: str, wanted: str, given: object) -> None:
        """Compose the message.

        Args:
            path: Where the field stands in the file.
            wanted: What it may be.
            given: What it is.
        """
        super().__init__(f"{path} is {shown(given)}, not {wanted}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A mapping in a file.

    Its fields are numbers with bounds, texts, other records, named tuples (lists in the file),
    tuples of one kind, mappings from text, and any of these or None. A field with a default may be
    missing: such a file is older than the field. What a newer file says beside the fields is kept.

    Attributes:
        extra: What a file says beside the fields.
        keys: The names in the file, in its order; None of a record that was not read.
    """

    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    keys: tuple[str, ...] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_dict(cls, content: object, path: str = "") -> Self:
        """Read plain data.

        Args:
            content: What JSON or YAML gave.
            path: Where it stands in the file, for the message.

        Returns:
            The record; `to_dict` of it equals `content`.

        Raises:
            InputError: A field is missing; the message begins with its path.
            Misfit: A field is not of its kind.
        """
        if not isinstance(content, Mapping):
            raise Misfit(path or cls.__name__, "a mapping", content)
        known, given = _own(cls), {}
        for name, slot in known.items():
            at = f"{path}.{name}" if path else name
            if name in content:
                given[name] = _read(at, slot.hint, content[name])
            elif slot.default is MISSING:
                raise InputError(f"{at} is missing")
        extra = {name: value for name, value in content.items() if name not in known}
        return cls(**given, extra=extra, keys=tuple(content))

    def to_dict(self) -> dict[str, Any]:
        """Give the record as plain data.

        Returns:
            What `from_dict` takes: every field, or of a record that was read those the file holds.
        """
        defaults = {name: slot.default for name, slot in _own(type(self)).items()}
        own = {
            name: value
            for name, value in self.fields().items()
            if self.keys is None or name in self.keys or value != _plain(defaults[name])
        }
        order = dict.fromkeys((*(self.keys or ()), *own, *self.extra))
        return {name: own[name] if name in own else self.extra[name] for name in order}

    def fields(self) -> dict[str, Any]:
        """Give the fields without the extra entries of the file.

        Returns:
            Plain data by name; a default where the file does not say it.
        """
        return {name: _plain(getattr(self, name)) for name in _own(type(self))}


class _Slot(NamedTuple):
    """A field: what it may be, and what it is where a file does not say it."""

    hint: object
    default: object


def _own(cls: type) -> dict[str, _Slot]:
    shared = {f.name for f in fields(Record)}
    kinds = hints(cls)
    return {f.name: _Slot(kinds[f.name], f.default) for f in fields(cls) if f.name not in shared}


def _read(path: str, hint: object, given: object) -> object:
    origin, args = get_origin(hint), get_args(hint)
    if origin in {types.UnionType, Union}:
        (inner,) = (a for a in args if a is not type(None))
        return None if given is None else _read(path, inner, given)
    if origin is tuple:
        if not isinstance(given, list):
            raise Misfit(path, "a list", given)
        return tuple(_read(f"{path}.{i}", args[0], item) for i, item in enumerate(given))
    if origin is not None and origin is not Annotated and issubclass(origin, Mapping):
        if not isinstance(given, Mapping):
            raise Misfit(path, "a mapping", given)
        return {k: _read(f"{path}.{_word(k)}", args[1], value) for k, value in given.items()}
    if isinstance(hint, type) and issubclass(hint, tuple):
        return _row(path, hint, given)
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_dict(given, path)
    if hint is object:
        return given
    return _leaf(path, hint, given)


def _row(path: str, kind: type, given: object) -> object:
    kinds = _kinds(kind)
    if not isinstance(given, list) or len(given) != len(kinds):
        raise Misfit(path, f"a list of {', '.join(kinds)}", given)
    values = zip(kinds.items(), given, strict=True)
    return kind(*(_read(f"{path}.{name}", hint, value) for (name, hint), value in values))


@functools.cache
def _kinds(kind: type) -> dict[str, object]:
    return typing.get_type_hints(kind, include_extras=True)


def _leaf(path: str, hint: object, given: object) -> object:
    """Check a number, a truth or a text; a file has types, so that none is made of another."""
    if hint is str:
        if not isinstance(given, str):
            raise Misfit(path, words(hint), given)
        return given
    try:
        value = read(path, hint, given)
    except InputError:
        raise Misfit(path, words(hint), given) from None
    if not isinstance(given, int | float if isinstance(value, float) else type(value)):
        raise Misfit(path, words(hint), given)
    return given


def _word(key: object) -> str:
    return key if isinstance(key, str) and key.isidentifier() else shown(key)


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value

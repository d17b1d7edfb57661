"""Labels as written in a list, and the class names that they stand for."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from .listing import Entry
from .tree import read_text

_COUNT = re.compile(r"0|[1-9][0-9]{0,17}")


def read_classes(folder: Path) -> tuple[str, ...] | None:
    """Read `classes.txt`: one class name per line, in the order of the integer labels.

    Args:
        folder: Where the lists are.

    Returns:
        The names, or None if there is no such file.

    Raises:
        InputError: A name is empty or appears twice.
    """
    path = folder / "classes.txt"
    if not path.is_file():
        return None
    classes = tuple(line.strip() for line in read_text(path).rstrip().splitlines())
    seen = {""}
    for number, name in enumerate(classes, start=1):
        if name in seen:
            raise InputError(f"{path}:{number}: expected a new class name, got {name!r}")
        seen.add(name)
    return classes


def akin(classes: Sequence[str], task: str) -> Iterator[str]:
    """Say which classes are probably meant as one, and which as several.

    Args:
        classes: Their names.
        task: What is learnt; where an image has several labels, one name may be a list of others.

    Yields:
        A note for each: one number written in several ways; names that differ in case, in blanks
        or in how letters are encoded alone; names with a comma or a bar between others.
    """
    numbers, alike = defaultdict(list), defaultdict(list)
    for name in classes:
        if name.isascii() and name.isdecimal():
            numbers[name.lstrip("0")].append(name)
        else:
            alike[_plain(name).casefold()].append(name)
    for several in (names for names in numbers.values() if len(names) > 1):
        said = " and ".join(map(repr, several))
        yield f"classes {said} are one number, and count as several classes"
    for several in (names for names in alike.values() if len(names) > 1):
        look_the_same = len({*map(_plain, several)}) < len(several)
        said = " and ".join(map(ascii if look_the_same else repr, several))
        yield f"classes {said} differ in case, blanks or encoding alone, and count as several"
    known = {*classes} if task == "multilabel" else set()
    for name in classes:
        if known & {part.strip() for part in re.split(r"[,|]", name)} - {name}:
            yield f"label {name!r} counts as one label of its own: a semicolon divides several"


def _plain(name: str) -> str:
    """Write a name as it looks: one encoding of each letter, no invisible ones, single blanks."""
    letters = (c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    return " ".join("".join(letters).split())


def order(classes: Iterable[str]) -> tuple[str, ...]:
    """Put class names in order: by value if all are integers, else alphabetically.

    Args:
        classes: Class names, repeated or not.

    Returns:
        Each name once.
    """
    unique = set(classes)
    return tuple(sorted(unique, key=_by_value if all(map(_is_integer, unique)) else None))


def _by_value(name: str) -> tuple[int, str, str]:
    digits = name.lstrip("0")
    return len(digits), digits, name


def name_labels(entries: Sequence[Entry], classes: tuple[str, ...] | None) -> list[Entry]:
    """Replace labels as written by class names.

    A label is text: `007` is the class `007`, and another one than `7`. Only where a `classes.txt`
    lies beside the list are integers from 0 indices into that, and a label that no integer is
    written as, such as `007`, is one of its names. Either all labels of a source are numbers or
    none is: a number among names is a slip of the pen.

    Args:
        entries: Entries with labels as written in a list or a CSV.
        classes: The names of `classes.txt`, if there is one.

    Returns:
        The same entries, with class names for labels.

    Raises:
        InputError: A label is negative, a fraction, out of range, or of the other kind.
    """
    integers = bool(entries) and _is_integer(entries[0].label)
    for label, where in ((entry.label, entry.where) for entry in entries):
        if _is_number(label) and not _is_integer(label):
            raise InputError(
                f"{where}: label {label!r} is neither an integer from 0 up nor a class name"
            )
        if _is_integer(label) != integers:
            others = "integers" if integers else "class names"
            raise InputError(f"{where}: label {label!r}, but the labels before it are {others}")
    if classes is None:
        return list(entries)
    counts = integers and all(_COUNT.fullmatch(entry.label) for entry in entries)
    return [entry._replace(label=_name(entry, counts, classes)) for entry in entries]


def _name(entry: Entry, counts: bool, classes: tuple[str, ...]) -> str:
    label, where = entry.label, entry.where
    if not counts:
        if label not in classes:
            raise InputError(f"{where}: label {label!r} is not in classes.txt")
        return label
    if int(label) >= len(classes):
        raise InputError(f"{where}: label {label}, but classes.txt names only {len(classes)}")
    return classes[int(label)]


def _is_integer(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 100


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower().lstrip("+-") not in {"nan", "inf", "infinity"}

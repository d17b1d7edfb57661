"""Errors a user can act on: one line each, raised at the door."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

FORMULA = re.compile(r"[\s\"'\0]*[=+@\t\r\-\uff1d\uff0b\uff0d\uff20]")
"""How texts begin that spreadsheets compute, also behind spaces and quotes."""
LONGEST = 80
"""Most characters of a given value that a message repeats."""
LISTED = 30
"""Most names that a message lists."""


class LowtideError(Exception):
    """Anything lowtide refuses or fails at on purpose. The message is one line; the CLI exits 1."""


class InputError(LowtideError, ValueError):
    """The caller gave something that cannot work; nothing was changed. The CLI exits 2."""


class Unsupported(InputError):
    """A method cannot live on this backbone; says which site lacks what."""


class UnknownName(InputError):
    """A name nobody knows; offers the nearest known ones."""

    def __init__(self, kind: str, given: object, known: Iterable[str]) -> None:
        """Compose the message.

        Args:
            kind: What was named, e.g. `method`.
            given: The name that was given.
            known: Every name that would have worked.
        """
        names = sorted(known)
        word = given[: 2 * LONGEST] if isinstance(given, str) else shown(given)
        near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
        all_or_some = names if len(names) <= LISTED else [*names[:8], f"... {len(names):,} in all"]
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(all_or_some)}"
        super().__init__(f"unknown {kind} {shown(given)}: {hint}")


def shown(value: object) -> str:
    """Write what was given so that a message can repeat it.

    Args:
        value: Anything a file or a caller may hold.

    Returns:
        Its `repr` on one line, cut in the middle where it is long.
    """
    if isinstance(value, int) and value.bit_length() > 4 * LONGEST:
        return f"a whole number of about {round(value.bit_length() * 0.30103)} digits"
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[: LONGEST // 2]!r}... ({len(value)} characters)"
    if isinstance(value, dict | list | tuple | set) and len(value) > LONGEST:
        return f"a {type(value).__name__} of {len(value)} entries"
    try:
        text = " ".join(line.strip() for line in repr(value).splitlines())
    except (ValueError, RecursionError):  # a number too long to print, or data too deep
        return f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 20]}...{text[-10:]}"


def printable(text: str) -> str:
    r"""Show what a terminal would obey: control characters, lone surrogates, changed direction.

    Args:
        text: A name of a file or a class, which may be anybody's.

    Returns:
        The text on one line, with `\x1b` for an escape.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(c) for c in text)


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in _TURNING
    return repr(character)[1:-1] if hidden else character


_TURNING = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F)))
"""Marks that change the direction of what follows, so that it reads as something else."""


def inert(value: object) -> object:
    """Keep a spreadsheet from computing a text: one that it would take for a formula gets a '.

    Args:
        value: A cell of a table.

    Returns:
        A text that can be printed; what is no text as it is.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if FORMULA.match(value) else text

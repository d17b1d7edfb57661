"""Errors a user can act on: one line each, raised at the door."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LowtideError(Exception):
    """Anything lowtide refuses or fails at on purpose. The message is one line; the CLI exits 1."""


class InputError(LowtideError, ValueError):
    """The caller gave something that cannot work; nothing was changed. The CLI exits 2."""


class Unsupported(InputError):
    """A method cannot live on this backbone; says which site lacks what."""


def unknown(kind: str, given: str, known: Iterable[str], most: int = 3) -> InputError:
    """Make the error for a name nobody knows, with the nearest known ones.

    Args:
        kind: What was named, e.g. `method`.
        given: The name that was given.
        known: Every name that would have worked.
        most: How many near names to offer.

    Returns:
        The error, for the caller to raise.
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=most, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:30])}"
    return InputError(f"unknown {kind} {given!r}: {hint}")

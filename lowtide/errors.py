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


class UnknownName(InputError):
    """A name nobody knows; offers the nearest known ones."""

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        """Compose the message.

        Args:
            kind: What was named, e.g. `method`.
            given: The name that was given.
            known: Every name that would have worked.
        """
        names = sorted(known)
        near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:30])}"
        super().__init__(f"unknown {kind} {given!r}: {hint}")

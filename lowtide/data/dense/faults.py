"""Faults of dense labels, and what is done about each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FAULTS: dict[str, str] = {
    "missing images": "refused",
    "missing masks": "refused",
    "missing label files": "refused",
    "unreadable images": "refused",
    "unreadable masks": "refused",
    "images of another size than declared": "refused",
    "masks of another size than their image": "refused",
    "classes beyond the names": "refused",
    "objects that are not understood": "refused",
    "boxes that are not finite": "refused",
    "boxes outside their image": "dropped",
    "empty boxes": "dropped",
    "empty outlines": "dropped",
    "boxes across the edge of their image": "clipped",
    "duplicate objects": "kept",
}
"""Every fault that is looked for, and what `read` does with it."""


class Fault(NamedTuple):
    """One thing that is wrong.

    Attributes:
        kind: One of `FAULTS`.
        where: The place, and what is wrong there.
    """

    kind: str
    where: str


class Faulty(ValueError):
    """An object that cannot be used.

    Attributes:
        kind: One of `FAULTS`.
    """

    def __init__(self, said: str, kind: str = "objects that are not understood") -> None:
        """Say why.

        Args:
            said: The reason.
            kind: One of `FAULTS`.
        """
        super().__init__(said)
        self.kind = kind


def finite(values: object, said: str) -> None:
    """Refuse NaN and infinity.

    Args:
        values: Numbers.
        said: What they are, for the message.

    Raises:
        Faulty: One is not finite.
    """
    if not np.isfinite(np.asarray(values, dtype=np.float64)).all():
        raise Faulty(said, "boxes that are not finite")

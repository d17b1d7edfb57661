"""Linear probing: only the classifier trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ..core.method import Edit, Method, method
from ..core.site import Sites


@method
@dataclass(frozen=True)
class Linear(Method):
    """Train the classifier on frozen features; nothing of the backbone is kept for backward.

    Parameters: `(C + 1) K`.

    Merge: nothing to merge.
    """

    learning_rate: ClassVar[float] = 0.001

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Change nothing: the classifier trains under every method."""
        return ()

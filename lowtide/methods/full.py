"""Full fine-tuning: every parameter of the backbone trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ..core.method import Edit, Method, Thaw, method
from ..core.site import Role, Sites


@method
@dataclass(frozen=True)
class Full(Method):
    """Train every weight; the baseline all others are compared with.

    Parameters: all of them (ViT-B/16: 85,798,656 and the head).

    Merge: nothing to merge, the backbone's own weights changed.
    """

    learning_rate: ClassVar[float] = 0.0005

    overwrites: ClassVar[bool] = True

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Thaw everything."""
        return [Thaw(s, s.params) for s in sites if s.params and s.role is not Role.HEAD]

"""Partial-k: the top of the backbone trains, the rest is frozen. Yosinski et al. 2014; VPT 2022."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ..core.method import Edit, Method, Thaw, method, need
from ..core.site import Role, Sites
from ..errors import Unsupported
from ..values import Index


@method
@dataclass(frozen=True)
class Partial(Method):
    """Train every parameter from the first of the last `blocks` blocks on, final norm included.

        y = F_n(... F_{n-k+1}(F_{n-k}(... F_1(x)))),    F_i frozen for i <= n - k

    What stands between the thawed blocks, such as a stage's downsampling, trains with them, and so
    do tables inside them, such as relative position biases.

    Parameters, one block: ViT-B/16 7,089,408; Swin-B 12,603,680; ConvNeXt-B 8,450,048.

    Merge: nothing to merge, the backbone's own weights changed. They are copies while the adapter
    is in place, so the backbone can be had back.

    Saves:
        For the last blocks what full fine-tuning saves; nothing below.

    Differs:
        VPT keeps the whole backbone in eval mode. Here a BatchNorm that trains normalises by its
        batch and its statistics move, as everywhere in lowtide.

    Attributes:
        blocks: How many blocks k, counted from the classifier.
    """

    learning_rate: ClassVar[float] = 0.001

    blocks: Index = 1

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"partial needs blocks >= 1, not {self.blocks}; none is linear")

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Thaw the top of the backbone.

        Args:
            sites: Every site of the backbone.

        Returns:
            One edit per module that holds parameters.

        Raises:
            Unsupported: The backbone has fewer blocks, or none that are known.
        """
        chain = need(sites.of(Role.BLOCK), "partial", "a chain of blocks")
        if self.blocks > len(chain):
            raise Unsupported(f"partial cannot train the last {self.blocks} blocks of {len(chain)}")
        top = sites[sites.index(chain[-self.blocks]) :]
        return [Thaw(s, s.params) for s in top if s.params and s.role is not Role.HEAD]

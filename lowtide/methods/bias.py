"""BitFit: only the biases train. Ben Zaken et al. 2022, arXiv:2106.10199."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ..core.method import Edit, Method, Thaw, method, need
from ..core.site import Role, Sites


@method
@dataclass(frozen=True)
class Bias(Method):
    """Train every bias the backbone has, of linear maps, convolutions and norms.

    No bias is created: a ResNet's convolutions stay without.

    Parameters: ViT-B/16 102,912; Swin-B 137,216; ConvNeXt-B 130,304; ResNet-50 26,560.

    Merge: nothing to merge, the backbone's own biases changed.

    Saves:
        Nothing beyond what a frozen block on the gradient path keeps.
    """

    learning_rate: ClassVar[float] = 0.005

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Thaw every bias."""
        biased = sites.where(lambda s: s.role is not Role.HEAD and bool(s.biases))
        return [Thaw(s, s.biases) for s in need(biased, "bias", "parameters named bias")]

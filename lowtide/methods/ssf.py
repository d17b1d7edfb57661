"""SSF: scale and shift deep features. Lian et al. 2022, arXiv:2210.08823, eq. 2."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ..graft import Edit, Method, Swap, method, need
from ..scale_shift import ScaleShift
from ..site import Role, Sites

AFTER = (Role.NORM, Role.QKV, Role.PROJ, Role.FC1, Role.FC2, Role.LINEAR)
CONVOLVED = (Role.STEM, Role.CONV, Role.DOWN)


@method
@dataclass(frozen=True)
class SSF(Method):
    """Scale and shift the output of every operation, channel by channel.

        y = gamma * x + beta,    gamma ~ N(1, 0.02^2),  beta ~ N(0, 0.02^2)

    It follows every norm, every linear map and every convolution with a bias (one without is
    followed by a norm anyway), the patch embedding among them, and ends the feature map. A linear
    map or norm without a bias is scaled only: the plain backbone has no place for a shift there.

    Parameters: ViT-B/16 205,824; Swin-B 274,432; ConvNeXt-B 260,608.

    Merge: exact, `W' = gamma W`, `b' = gamma b + beta` (by rows). ConvNeXt's last one follows a
    residual sum and precedes pooling, so no single module can absorb it.

    Saves:
        The output of every operation it follows, for gamma's gradient: 11 u per ViT block, more
        than full fine-tuning keeps.

    Attributes:
        init: `paper` starts at the random values above; `identity` at gamma = 1, beta = 0.
    """

    init: Literal["paper", "identity"] = "paper"

    @property
    def identity(self) -> bool:
        """Whether it promises that training starts exactly at the backbone."""
        return self.init == "identity"

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft a scale and shift after every operation.

        Args:
            sites: Every site of the backbone.

        Returns:
            One edit per operation.
        """
        after = sites.where(
            lambda s: s.role in AFTER or (s.role in CONVOLVED and "bias" in s.params)
        )
        spread = 0.0 if self.identity else 0.02
        return [
            Swap(s, partial(ScaleShift, site=s, spread=spread))
            for s in need(after, "ssf", "an affine map or a norm")
        ]

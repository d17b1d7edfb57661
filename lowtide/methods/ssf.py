"""SSF: scale and shift deep features. Lian et al. 2022, arXiv:2210.08823, eq. 2."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..affine import fold
from ..graft import Edit, Graft, Method, Swap, method, need
from ..site import Layout, Role, Site, Sites

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
        return [
            Swap(s, partial(SSFGraft, site=s, init=self.init))
            for s in need(after, "ssf", "an affine map or a norm")
        ]


class SSFGraft(Graft):
    """`gamma * base(x) + beta` along the channel axis."""

    unmergeable: ClassVar[str] = "what it scales is a sum of branches, not the output of one map"

    def __init__(self, base: nn.Module, site: Site, init: str) -> None:
        super().__init__(base)
        spread = 0.02 if init == "paper" else 0.0
        shape = (site.dim, 1, 1) if site.layout is Layout.FIRST else (site.dim,)
        self.gamma = nn.Parameter(1 + spread * torch.randn(shape))
        absorbs = "bias" in site.params or not site.params
        self.beta = nn.Parameter(spread * torch.randn(shape)) if absorbs else None

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift the base's output.

        Args:
            x: The operation's input.

        Returns:
            The scaled and shifted output.
        """
        y = self.base(x) * self.gamma
        return y if self.beta is None else y + self.beta

    def merged(self) -> nn.Module | None:
        """Fold scale and shift into the base's weight and bias.

        Returns:
            The folded module, or None where the base has no weight to absorb it.
        """
        shift = None if self.beta is None else self.beta.flatten()
        return fold(self.base, scale=self.gamma.flatten(), shift=shift)

"""The graft that scales and shifts an output, channel by channel."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .affine import fold
from .graft import Graft
from .site import Layout, Site


class ScaleShift(Graft):
    """`gamma * base(x) + beta` along the channel axis; no beta where the base has no bias.

    Saves:
        The base's output, for gamma's gradient.
    """

    unmergeable: ClassVar[str] = "what it scales is a sum of branches, not the output of one map"

    def __init__(self, base: nn.Module, site: Site, spread: float) -> None:
        """Draw gamma and beta.

        Args:
            base: What stands there.
            site: Where it stands.
            spread: Standard deviation of gamma around 1 and of beta around 0.
        """
        super().__init__(base)
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

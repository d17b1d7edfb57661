"""The graft that scales and shifts an output, channel by channel."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .graft import Graft
from .linear_maps import ACTIVATED, fold
from .site import Layout, Site
from .wrapped import plain_kind

Init = Literal["paper", "identity", "uniform", "trunc_normal", "random"]
SPREAD = 0.02
"""Standard deviation of the factors around 1 and of the summands around 0."""


class ScaleShift(Graft):
    """`gamma * base(x) + beta` along the channel axis; no beta where the base has no bias.

    A norm with an activation of its own is scaled in front of that, as one without would be:
    `act(gamma * (w xhat + b) + beta)`.

    Saves:
        The base's output, for gamma's gradient; xhat in its place before an activation.
    """

    positionwise = True

    unmergeable: ClassVar[str] = "what it scales is not the output of one map or norm"

    def __init__(
        self,
        base: nn.Module,
        site: Site,
        init: Init = "paper",
        scale: Literal["vector", "scalar", "none"] = "vector",
        shift: bool = True,
    ) -> None:
        """Draw gamma and beta.

        Args:
            base: What stands there.
            site: Where it stands.
            init: `paper` N(1, 0.02^2) and N(0, 0.02^2); `identity` 1 and 0; `uniform` and
                `trunc_normal` of the same spread; `random` has gamma at N(0, 0.02^2) too.
            scale: A factor per channel, one for all, or none.
            shift: Whether there is a beta.
        """
        super().__init__(base)
        tail = (1, 1) if site.layout is Layout.FIRST else ()
        self.channels = site.dim
        count = 1 if scale == "scalar" else site.dim
        self.gamma = None if scale == "none" else nn.Parameter(_draw((count, *tail), init))
        if self.gamma is not None and init != "random":
            self.gamma.data += 1
        wanted = shift and absorbs_shift(site)
        self.beta = nn.Parameter(_draw((site.dim, *tail), init)) if wanted else None

    @property
    def splits(self) -> bool:
        """Whether the output is scaled after the base, not before the base's activation."""
        return plain_kind(self.base) not in ACTIVATED

    def forward(self, x: Tensor, *args: object, **options: object) -> Tensor:
        """Scale and shift the base's output, before its activation if it has one."""
        if self.splits:
            return super().forward(x, *args, **options)
        return functional_call(self.base, self._scaled(), x)

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Scale and shift the base's output."""
        if self.gamma is not None:
            y = y * self.gamma
        return y if self.beta is None else y + self.beta

    def _scaled(self) -> dict[str, Tensor]:
        """Scale and shift what a norm makes of xhat."""
        w: Tensor = self.base.get_parameter("weight")
        b: Tensor = self.base.get_parameter("bias")
        if self.gamma is not None:
            w, b = (p * self.gamma.flatten() for p in (w, b))
        return {"weight": w, "bias": b if self.beta is None else b + self.beta.flatten()}

    def merged(self) -> nn.Module | None:
        """Fold scale and shift into the base; None where it has no weight to absorb them."""
        scale, shift = self.channelwise()
        return fold(self.base, scale=scale, shift=shift)

    def channelwise(self) -> tuple[Tensor | None, Tensor | None]:
        """Give gamma and beta, `(C,)` each or None; one gamma for all is repeated."""
        gamma, beta = (None if v is None else v.flatten() for v in (self.gamma, self.beta))
        return None if gamma is None else gamma.expand(self.channels), beta


def absorbs_shift(site: Site) -> bool:
    """Whether the plain backbone has a place for a shift: a bias, or no parameters at all.

    Args:
        site: Where.

    Returns:
        Whether a merged model can hold the shift.
    """
    return "bias" in site.params or not site.params


def _draw(shape: tuple[int, ...], init: Init) -> Tensor:
    drawn = torch.zeros(shape)
    if init == "uniform":
        return drawn.uniform_(-(3**0.5) * SPREAD, 3**0.5 * SPREAD)
    if init == "trunc_normal":
        return nn.init.trunc_normal_(drawn, std=SPREAD, a=-2 * SPREAD, b=2 * SPREAD)
    return drawn if init == "identity" else drawn.normal_(0, SPREAD)

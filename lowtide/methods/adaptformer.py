"""AdaptFormer: a scaled bottleneck beside the MLP. Chen et al. 2022, arXiv:2205.13535, eqs. 2-3."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from ..core.graft import Graft
from ..core.linear_maps import bottleneck
from ..core.method import Edit, Method, Swap, method, need
from ..core.site import Role, Site, Sites
from ..values import Scale, Share, Width


@method
@dataclass(frozen=True)
class AdaptFormer(Method):
    """Add a bottleneck's output to that of the MLP it runs beside, on the same input.

        y = MLP(z) + s W_up drop(relu(W_down z + b)) + s b',    z = LN(x)

    W_down ~ Kaiming-uniform(a = sqrt(5)), the rest is zero.

    Parameters: `2 C r + r + C` per block; ViT-B/16 at rank 64: 1,189,632, at rank 8: 156,768.

    Merge: none, a ReLU stands between the maps.

    Saves:
        Its input z, 1 u, and `rank` channels after ReLU, with dropout in training `rank` more and
        its mask. The frozen MLP does not need z.

    Differs:
        The authors' code reads x, the stream before the norm, which the norm keeps anyway, and adds
        its output outside stochastic depth. Here it reads z, as the paper's equation says, stands
        inside stochastic depth, and before the scale where a backbone scales its branches.

    Attributes:
        rank: Width r between the maps.
        scale: s.
        dropout: Probability of dropping a value after ReLU.
    """

    learning_rate: ClassVar[float] = 0.005

    rank: Width = 64
    scale: Scale = 0.1
    dropout: Share = 0.1

    def __post_init__(self) -> None:
        if self.rank < 1 or self.scale == 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                "adaptformer needs rank >= 1, a scale other than 0 and a dropout in [0, 1), not"
                f" rank={self.rank} scale={self.scale} dropout={self.dropout}"
            )

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft a bottleneck beside each channel MLP."""
        chosen = need(sites.of(Role.MLP), "adaptformer", "a channel MLP in its blocks")
        return [Swap(s, partial(AdaptFormerGraft, site=s, config=self)) for s in chosen]


class AdaptFormerGraft(Graft):
    """`base(z) + s up(drop(relu(down(z))))`."""

    unmergeable: ClassVar[str] = "a ReLU stands between its maps"

    def __init__(self, base: nn.Module, site: Site, config: AdaptFormer) -> None:
        super().__init__(base)
        self.scale = config.scale
        self.down, self.up = bottleneck(site.layout, site.dim, config.rank)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(config.dropout)

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Run the bottleneck beside the MLP."""
        return y + self.scale * self.up(self.drop(self.act(self.down(x))))

"""Low-rank updates of many maps at once: their weights stacked into one tensor and factored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Unsupported
from .graft import Graft
from .linear_maps import fold
from .method import Swap, need
from .site import Role, Site, Sites

Core = Callable[[Site], nn.Module]
"""Makes the core of one map: a module that is called without arguments and gives a matrix
(outputs * rank, inputs * rank) for the map's numbers of input and output slices."""


def check(name: str, rank: int, dropout: float) -> None:
    """Refuse options that make no factors.

    Args:
        name: The method that asks.
        rank: Inner width.
        dropout: A probability.

    Raises:
        ValueError: One is out of range.
    """
    if rank < 1 or not 0 <= dropout < 1:
        raise ValueError(
            f"{name} needs rank >= 1 and dropout in [0, 1), not rank={rank} dropout={dropout}"
        )


def slices(name: str, site: Site) -> tuple[int, int]:
    """Cut a map's weight into square slices as wide as its narrower side.

    Args:
        name: The method that asks.
        site: The map.

    Returns:
        Slices along the input and along the output; one of them is 1.

    Raises:
        Unsupported: The wider side is no multiple of the narrower.
    """
    narrow, wide = sorted((site.in_dim, site.dim))
    if wide % narrow:
        raise Unsupported(
            f"{name} cuts weights into squares, and {site.path} maps {site.in_dim} channels to"
            f" {site.dim}"
        )
    return site.in_dim // narrow, site.dim // narrow


def stacks(name: str, sites: Sites) -> list[Sites]:
    """Gather the maps of attention and of the channel MLP by the width of their slices.

    Args:
        name: The method that asks.
        sites: Every site of the backbone.

    Returns:
        The maps of each width, in order.

    Raises:
        Unsupported: There are none, or one has no slices.
    """
    maps = sites.of(Role.QKV, Role.PROJ, Role.FC1, Role.FC2).where(lambda s: bool(s.in_shape))
    found: dict[int, list[Site]] = {}
    for s in need(maps, name, "attention or an MLP"):
        found.setdefault(s.in_dim // slices(name, s)[0], []).append(s)
    return [Sites(stack) for stack in found.values()]


def factored(sites: Sites, rank: int, core: Core, scale: float, dropout: float) -> Iterable[Swap]:
    """Graft one stack: its maps share U and V, and each has its own core.

    Args:
        sites: Maps whose slices have one size C.
        rank: Inner width r.
        core: Makes each map's core.
        scale: Scale of the update.
        dropout: Probability of dropping what a core gives.

    Returns:
        One edit per map. U (r, C) starts as a Linear's weight, V (C, r) at zero.
    """
    width = min(sites[0].in_dim, sites[0].dim)
    pair = nn.Linear(width, rank, bias=False).weight, nn.Parameter(torch.zeros(width, rank))
    return [
        Swap(
            s,
            partial(
                FactorGraft,
                axis=s.layout.value,
                pair=pair,
                core=core(s),
                scale=scale,
                dropout=dropout,
            ),
        )
        for s in sites
    ]


class FactorGraft(Graft):
    """`base(x) + s V drop(core(U x))`: U reads every slice of x, V writes every slice of y.

    Saves:
        The input of the map, and `rank` channels per slice before and behind the core.
    """

    positionwise = True

    unmergeable: ClassVar[str] = "what it stands on cannot be folded"

    def __init__(
        self,
        base: nn.Module,
        axis: int,
        pair: tuple[Tensor, Tensor],
        core: nn.Module,
        scale: float,
        dropout: float,
    ) -> None:
        """Put the factors beside a map.

        Args:
            base: What stands there.
            axis: Channel axis.
            pair: U and V, shared.
            core: Gives the matrix between them.
            scale: The scale s.
            dropout: Probability of dropping what the core gives.
        """
        super().__init__(base)
        self.axis, self.scale = axis, scale
        self.U, self.V = pair
        self.core = core
        self.drop = nn.Dropout(dropout)

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the update to the base's output."""
        rank, width = self.U.shape
        h = F.linear(x.movedim(self.axis, -1).unflatten(-1, (-1, width)), self.U).flatten(-2)
        h = self.scale * self.drop(F.linear(h, self.core()))
        update = F.linear(h.unflatten(-1, (-1, rank)), self.V).flatten(-2)
        return y + update.movedim(-1, self.axis)

    def merged(self) -> nn.Module | None:
        """Fold `s V core U` into the base's weight; None on another graft."""
        rank = len(self.U)
        core = self.core().unflatten(1, (-1, rank)).unflatten(0, (-1, rank))
        delta = self.scale * torch.einsum("ck,bkal,ld->bcad", self.V, core, self.U)
        like = self.root.get_parameter("weight")
        return fold(self.base, delta=delta.reshape(like.shape))

"""FacT-TT: the updates of all maps as one tensor train. Jie & Deng 2023, arXiv:2212.03145."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.method import Edit, Method, method
from ..core.site import Site, Sites
from ..core.tensor_train import check, factored, slices, stacks
from ..values import Scale, Share, Width


@method
@dataclass(frozen=True)
class FacTTT(Method):
    """Stack the updates of q, k, v, o and the MLP as square slices, and factor the stack.

        W_i' = W_i + s V Sigma_i U,    U (r, C), V (C, r) shared, Sigma_i (r, r) for each slice

    A block has 12 slices: q, k, v and o one each, fc1 and fc2 four each (a hidden layer of another
    width: as many as it is wider). `U` and `Sigma` start as the weights of Linears, `V = 0`.
    Dropout acts between Sigma and V.

    Parameters: `2 C r + 12 L r^2`; ViT-B/16 at rank 16 61,440, at rank 4 8,448.

    Merge: exact, as above.

    Saves:
        The input of every map, 7 u per ViT block, and `r` channels per slice around Sigma.

    Differs:
        The paper knows one width. Where stages differ in width, each has its own U and V. A channel
        MLP without attention is a stack of its own.

    Attributes:
        rank: Inner width r.
        scale: Scale s of the update; the authors choose it per task among 0.01 ... 100.
        dropout: Probability of dropping what Sigma gives.
    """

    learning_rate: ClassVar[float] = 0.005

    rank: Width = 16
    scale: Scale = 1.0
    dropout: Share = 0.1

    def __post_init__(self) -> None:
        check("fact_tt", self.rank, self.dropout)

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft the factors on attention's maps and the MLP's."""
        return [
            edit
            for stage in stacks("fact_tt", sites)
            for edit in factored(stage, self.rank, self._core, self.scale, self.dropout)
        ]

    def _core(self, site: Site) -> nn.Module:
        return Sigma(self.rank, *slices("fact_tt", site))


class Sigma(nn.Module):
    """The core of one map: a slice of the middle factor for each slice of its weight."""

    positionwise = True  # it is given no position at all

    def __init__(self, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(rank * inputs)
        drawn = torch.empty(outputs * rank, inputs * rank).uniform_(-bound, bound)
        self.weight = nn.Parameter(drawn)

    def forward(self) -> Tensor:
        """Give the middle factor's matrix.

        Returns:
            `(outputs * rank, inputs * rank)`.
        """
        return self.weight

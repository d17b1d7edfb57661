"""FacT-TK: the updates of all maps as a Tucker tensor. Jie & Deng 2023, arXiv:2212.03145."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.method import Edit, Method, method
from ..core.site import Role, Site, Sites
from ..core.tensor_train import check, factored, slices, stacks
from ..values import Scale, Share, Width


@method
@dataclass(frozen=True)
class FacTTK(Method):
    """Stack the updates of q, k, v, o and the MLP as square slices, and factor the stack thrice.

        W_i' = W_i + s V (sum_j P_ij C_j) U,    U (r, C), V (C, r), C (r, r, r) shared

    A block has 12 slices, each with its own row of P: q, k, v and o one each, fc1 and fc2 four each
    (a hidden layer of another width: as many as it is wider). `U` starts as the weight of a Linear,
    `C` and `P` Xavier-uniform, `V = 0`. Dropout acts between the core and V.

    Parameters: `2 C r + r^3 + 12 L r`; ViT-B/16 at rank 32 86,528, at rank 16 30,976.

    Merge: exact, as above.

    Saves:
        The input of every map, 7 u per ViT block, and `r` channels per slice around the core.

    Differs:
        The authors' code for the MLP is another function than the formula, of the same size: its
        reshape interleaves the four slices. Output b of slice i of fc1's core stands at place
        4 b + i, and each quarter of the hidden layer takes r places in a row; fc2's core reads the
        places so and is transposed. Their ranks and scales were tuned with it; `interleave=True`
        has it, and merges. The paper knows one width. Where stages differ in width, each has its
        own U, V and C. A channel MLP without attention is a stack of its own.

    Attributes:
        rank: Inner width r.
        scale: Scale s of the update; the authors choose it per task among 0.01 ... 100.
        dropout: Probability of dropping what the core gives.
        interleave: Interleave the MLP's slices and transpose fc2's, as the authors' code does.
    """

    learning_rate: ClassVar[float] = 0.005

    rank: Width = 32
    scale: Scale = 1.0
    dropout: Share = 0.1
    interleave: bool = False

    def __post_init__(self) -> None:
        check("fact_tk", self.rank, self.dropout)

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft the factors on attention's maps and the MLP's."""
        edits: list[Edit] = []
        for stage in stacks("fact_tk", sites):
            shared = nn.Parameter(nn.init.xavier_uniform_(torch.empty([self.rank] * 3)))
            rows = sum(max(slices("fact_tk", s)) for s in stage)
            core = partial(self._core, shared, rows)
            edits += factored(stage, self.rank, core, self.scale, self.dropout)
        return edits

    def _core(self, shared: nn.Parameter, rows: int, site: Site) -> nn.Module:
        interleaved = self.interleave and site.role in (Role.FC1, Role.FC2)
        transposed = self.interleave and site.role is Role.FC2
        return Tucker(shared, rows, *slices("fact_tk", site), interleaved, transposed)


class Tucker(nn.Module):
    """The core of one map: for each slice of its weight a mixture of the shared matrices C_j."""

    positionwise = True  # it is given no position at all

    def __init__(
        self,
        shared: nn.Parameter,
        rows: int,
        inputs: int,
        outputs: int,
        interleaved: bool,
        transposed: bool,
    ) -> None:
        super().__init__()
        rank = len(shared)
        bound = math.sqrt(6 / (rows + rank))  # Xavier's, of all rows of P together
        self.C = shared
        self.P = nn.Parameter(torch.empty(max(inputs, outputs), rank).uniform_(-bound, bound))
        self.side = int(inputs > 1)
        self.interleaved, self.transposed = interleaved, transposed

    def forward(self) -> Tensor:
        """Mix the shared matrices.

        Returns:
            `(outputs * rank, inputs * rank)`.
        """
        mixed = torch.einsum("sj,jki->ski", self.P, self.C)
        mixed = mixed.mT if self.transposed else mixed
        if self.interleaved:
            return mixed.movedim(0, self.side + 1).flatten(self.side, self.side + 1)
        return torch.cat(mixed.unbind(), self.side)

"""ARC: one adapter's projection shared by all layers. Dong et al. 2023, arXiv:2310.06234."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core.graft import Graft
from ..core.linear_maps import fold
from ..core.method import Beside, Edit, Method, Swap, method, need
from ..core.side import Block, Side, key
from ..core.site import Role, Site, Sites
from ..errors import Unsupported
from ..values import Share, Width

INPUTS = {"both": (Role.QKV, Role.FC1), "attention": (Role.QKV,), "mlp": (Role.FC1,)}


@method
@dataclass(frozen=True)
class ARC(Method):
    """Adapt the inputs of attention and MLP by a symmetric projection with a scale per layer.

        z' = z + drop(z U diag(c_l)) U^T + b_l

    U (C, rank) is shared by all layers of one width, one for attention and one for the MLP; each
    layer has its own c_l and b_l. There is no nonlinearity. `U` starts Xavier-uniform, `b = 0`;
    `c = 0` for attention and Xavier-uniform for the MLP, so training starts off the backbone.

    Parameters: ViT-B/16 96,432; Swin-B 218,464.

    Merge: exact, into the map that reads z: `W' = W (I + U diag(c) U^T)`, `b' = b + W b_l`.

    Saves:
        Its input z, and three times the `rank` channels in between.

    Differs:
        In the authors' code for Swin the adapter of the MLP's side stands on the residual stream,
        `x <- ARC(x)`, `x <- x + mlp(norm2(x))`, where that for ViT and the paper adapt what norm2
        gives. Their rates for Swin were tuned so; `stream=True` has it, and cannot merge. It is
        applied to what the qkv and fc1 maps read, so a windowed backbone that pads its
        windows adapts the padding as well; merged it does so in any case. Where that map has no
        bias there is no b_l, which would have no place to merge into. Xavier takes c for one row.

    Attributes:
        rank: Columns of U.
        dropout: Probability of dropping one of the `rank` channels.
        where: `both`; `attention` alone (the paper's ARC_att); or `mlp` alone.
        init: `paper` starts as above; `identity` with c = 0 for the MLP as well.
        stream: Adapt the residual stream between attention and MLP, not what the MLP reads.
    """

    learning_rate: ClassVar[float] = 0.01

    rank: Width = 50
    dropout: Share = 0.1
    where: Literal["both", "attention", "mlp"] = "both"
    init: Literal["paper", "identity"] = "paper"
    stream: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1 or self.where not in INPUTS:
            raise ValueError(
                f"arc needs rank >= 1, dropout in [0, 1) and where both, attention or mlp,"
                f" not rank={self.rank} dropout={self.dropout} where={self.where!r}"
            )

    @property
    def identity(self) -> bool:
        """Whether the method promises that training starts exactly at the backbone."""
        return self.init == "identity" or self.where == "attention"

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft the adapters in front of attention and MLP.

        Args:
            sites: Every site of the backbone.

        Returns:
            One edit per adapter; one for all that stand on the stream.

        Raises:
            Unsupported: There are no such maps; or the stream is to be adapted, and the table has
                no way into the backbone's blocks.
        """
        edits: list[Edit] = []
        for role in INPUTS[self.where]:
            if self.stream and role is Role.FC1:
                blocks = need(sites.of(Role.BLOCK), "arc", "blocks to adapt the stream in")
                if closed := [s.path for s in blocks if not s.halved]:
                    raise Unsupported(
                        f"arc's stream stands between attention and MLP, and into {closed[0]} there"
                        " is no way; stream=False adapts what the MLP reads"
                    )
                edits.append(Beside(partial(Stream, blocks, self)))
                continue
            called = sites.of(role).where(lambda s: bool(s.in_shape))
            read = need(called, "arc", f"maps of role {role}")
            shared = {
                width: nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, self.rank)))
                for width in dict.fromkeys(s.in_dim for s in read)
            }
            edits += [
                Swap(s, partial(ARCGraft, site=s, shared=shared[s.in_dim], config=self))
                for s in read
            ]
        return edits


class ARCGraft(Graft):
    """`base(z + drop(z U diag(c)) U^T + b)`; U is shared, c and b are its own."""

    positionwise = True

    unmergeable: ClassVar[str] = "what it stands in front of cannot be folded"

    def __init__(self, base: nn.Module, site: Site, shared: nn.Parameter, config: ARC) -> None:
        super().__init__(base)
        self.axis = site.layout.value
        self.drop = nn.Dropout(config.dropout)
        self.U = shared
        self.c = nn.Parameter(torch.zeros(config.rank))
        if site.role is Role.FC1 and config.init == "paper":
            nn.init.xavier_uniform_(self.c.data[None])
        self.b = nn.Parameter(torch.zeros(site.in_dim)) if "bias" in site.params else None

    def ahead(self, x: Tensor) -> Tensor:
        """Adapt the base's input."""
        z = _adapted(x.movedim(self.axis, -1), self.U, self.c, self.b, self.drop)
        return z.movedim(-1, self.axis)

    def merged(self) -> nn.Module | None:
        """Fold the adapter into the map behind it; None in front of another graft."""
        if isinstance(self.base, Graft):
            return None
        base: Any = self.base
        weight = base.weight.flatten(1)
        delta = (weight @ self.U * self.c @ self.U.T).view_as(base.weight)
        return fold(base, delta=delta, shift=None if self.b is None else weight @ self.b)


class Stream(Side):
    """`ARC(x)` between attention and MLP of every block; U by width, c and b by block."""

    unmergeable: ClassVar[str] = "no map of the backbone stands on the residual stream alone"

    def __init__(self, blocks: Sites, config: ARC, classes: int) -> None:
        super().__init__()
        self.axis = {key(s.path): s.layout.value for s in blocks}
        self.drop = nn.Dropout(config.dropout)
        self.U = nn.ParameterDict({
            str(width): nn.init.xavier_uniform_(torch.empty(width, config.rank))
            for width in dict.fromkeys(s.dim for s in blocks)
        })
        self.c, self.b = nn.ParameterDict(), nn.ParameterDict()
        for s in blocks:
            c = torch.zeros(1, config.rank)
            self.c[key(s.path)] = (nn.init.xavier_uniform_(c) if config.init == "paper" else c)[0]
            self.b[key(s.path)] = torch.zeros(s.dim)

    def step(self, path: str, block: Block, x: Tensor, state: None) -> tuple[Tensor, None]:
        """Run a block with the stream adapted inside; what stands between stages as it is."""
        name = key(path)
        return block(x, between=partial(self._between, name)) if name in self.c else block(x), None

    def _between(self, name: str, x: Tensor) -> Tensor:
        z, b = x.movedim(self.axis[name], -1), self.b[name]
        z = _adapted(z, self.U[str(len(b))], self.c[name], b, self.drop)
        return z.movedim(-1, self.axis[name])


def _adapted(z: Tensor, U: Tensor, c: Tensor, b: Tensor | None, drop: nn.Module) -> Tensor:
    z = z + drop(z @ U * c) @ U.T
    return z if b is None else z + b

"""DTL: a compact side network reads the blocks and writes late. Fu et al. 2024, eqs. 5-9."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.method import Beside, Edit, Method, method, need
from ..core.side import Block, Side, key
from ..core.site import Layout, Role, Site, Sites
from ..errors import Unsupported
from ..values import Index, Ratio, Width


@method
@dataclass(frozen=True)
class DTL(Method):
    """Gather low-rank information along the blocks and add it to the later ones.

    A compact side network (CSN) reads the input z_i of each block; from block M on it corrects the
    block's output (arXiv:2312.07856, eqs. 5 and 8, with `plus` eq. 9):

        h_0 = 0,    h_i = h_{i-1} + (z_i A_i^T) B_i^T,    A_i (r, C),  B_i (C, r) = 0
        z_{i+1} = b_i(z_i) + g(theta(h_i)),    theta(x) = x sigmoid(beta x)           for i >= M

    g is the identity, or for DTL+ one depthwise convolution per stage, without bias, that class and
    register tokens bypass; DTL+* is `plus=True, start_block=1`.

    h restarts at 0 in every stage, so only stages that are corrected have a CSN; a block that
    changes width or resolution itself has none. The paper corrects half of the blocks: by default M
    is the middle one of those from the stage on that holds the backbone's middle block. That is 7
    of 12 on ViT-B and, as in the authors' code, 15 of 24 on Swin-B, whose stages 3 and 4 are read.

    Parameters: ViT-B/16 36,864; Swin-B 45,056; ConvNeXt-B 67,584; ResNet-50 36,864. DTL+ on
    ViT-B/16 with a kernel of 3, 4, 5: 43,776, 49,152, 56,064. Swin-B at the paper's rank of 4:
    90,112, DTL+ 128,512, DTL+* 144,256.

    Merge: none, theta is no linear map.

    Saves:
        Per block that has a CSN its input, 1 u, and `rank` channels; from M on h as well, 1 u (DTL+
        2 u). Up to and including block M the backbone keeps nothing, after it what a frozen block
        on the gradient path keeps.

    Differs:
        The authors' code also makes convolutions for stages that never use theirs (Swin-B: 9,600
        parameters). theta is written silu(beta x) / beta, which keeps one tensor where x times a
        sigmoid keeps two.

    Attributes:
        rank: Width r between A and B; the paper takes 2 on ViT and 4 on Swin.
        start_block: M, the first block whose output is corrected, counted from 1; 0 finds it.
        plus: DTL+, with the convolution g.
        kernel: Side of g's kernel; the paper takes 3, 4 or 5 by task on ViT and 5 on Swin.
        beta: Sharpness of theta.
        pool: `mean` classifies the mean of the patch tokens in place of a class token, as the
            authors' code does and their text does not say; `model` leaves the backbone's pooling.
            Where feature maps are read nothing is pooled.
    """

    learning_rate: ClassVar[float] = 0.01

    rank: Width = 2
    start_block: Index = 0
    plus: bool = False
    kernel: Width = 5
    beta: Ratio = 100.0
    pool: Literal["mean", "model"] = "mean"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.start_block < 0 or self.kernel < 1 or self.beta <= 0:
            raise ValueError(
                f"dtl needs rank and kernel of at least 1, start_block of at least 0 and a positive"
                f" beta, not rank={self.rank} kernel={self.kernel} start_block={self.start_block}"
                f" beta={self.beta}"
            )

    @property
    def identity(self) -> bool:
        """Whether the method promises that training starts exactly at the backbone."""
        return self.pool == "model"

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Run the side network beside the blocks.

        Args:
            sites: Every site of the backbone.

        Returns:
            One edit.

        Raises:
            Unsupported: There is no block M, or DTL+ meets tokens that form no square grid.
        """
        blocks = need(sites.of(Role.BLOCK), "dtl", "blocks")
        if self.start_block > len(blocks):
            raise Unsupported(
                f"dtl starts at block {self.start_block}, and this backbone has {len(blocks)}"
            )
        start = self.start_block - 1
        if not self.start_block:
            late = need(_readable(sites, len(blocks) // 2), "dtl", "late blocks of one shape")
            start = late[len(late) // 2].depth
        read = need(_readable(sites, start), "dtl", "late blocks of one shape")
        for s in read:
            if self.plus and s.grid[0] * s.grid[1] + s.prefix != s.tokens:
                raise Unsupported(
                    f"dtl+ convolves a square grid, and {s.path} has {s.tokens} tokens"
                )
        return [Beside(partial(CSN, read, start, self), maps=True)]


def _readable(sites: Sites, depth: int) -> Sites:
    """Take every block that keeps its shape, from the stage on that holds a depth."""
    late = [stage for stage in sites.stages if stage[-1].depth >= depth]
    return Sites(s for stage in late for s in stage if s.in_shape == s.out_shape)


class CSN(Side):
    """The compact side network; state is h, shaped like the feature map between blocks."""

    unmergeable: ClassVar[str] = "Swish stands between the side network and the backbone"

    def __init__(self, read: Sites, start: int, config: DTL, classes: int) -> None:
        super().__init__()
        self.beta = config.beta
        self.pooled = read[-1].prefix if classes and config.pool == "mean" else 0
        self.layers, self.g = nn.ModuleDict(), nn.ModuleDict()
        self.stage_of: dict[str, str] = {}
        for i, stage in enumerate(read.stages):
            for s in stage:
                self.layers[key(s.path)] = _low_rank(s, config.rank)
                if s.depth >= start:
                    self.stage_of[key(s.path)] = str(i)
            self.g[str(i)] = Depthwise(stage[0], config.kernel) if config.plus else nn.Identity()

    def step(
        self, path: str, block: Block, x: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Read a block's input into h and, late enough, correct its output."""
        name = key(path)
        if name not in self.layers:
            return block(x), None
        h = self.layers[name](x)
        h = h if state is None else state + h
        x = block(x)
        if name in self.stage_of:
            x = x + self.g[self.stage_of[name]](F.silu(self.beta * h) / self.beta)
        return x, h

    def finish(self, x: Tensor, state: Tensor) -> Tensor:
        """Put the mean of the patch tokens where the class token stood."""
        if not self.pooled:
            return x
        return torch.cat([x[:, self.pooled :].mean(1, keepdim=True), x[:, 1:]], 1)


class Depthwise(nn.Conv2d):
    """g: one filter per channel, on the patch tokens of any layout; the others pass."""

    def __init__(self, site: Site, kernel: int) -> None:
        c = site.dim
        super().__init__(c, c, kernel, padding=(kernel - 1) // 2, groups=c, bias=False)
        self.layout, self.prefix, self.grid = site.layout, site.prefix, site.grid

    def forward(self, y: Tensor) -> Tensor:
        """Convolve; zeros around the grid keep its size.

        Args:
            y: `(B, C, H, W)`, `(B, H, W, C)` or `(B, N, C)`.

        Returns:
            The same shape.
        """
        if self.layout is Layout.FIRST:
            return self._same(y)
        if y.ndim == 4:
            return self._same(y.movedim(-1, 1)).movedim(1, -1)
        patches = y[:, self.prefix :].mT.unflatten(2, self.grid)
        return torch.cat([y[:, : self.prefix], self._same(patches).flatten(2).mT], 1)

    def _same(self, x: Tensor) -> Tensor:
        """Pad as PyTorch's "same" does: an even kernel gets its odd zero below and to the right."""
        even = 1 - self.kernel_size[0] % 2
        return super().forward(F.pad(x, (0, even, 0, even)) if even else x)


def _low_rank(site: Site, rank: int) -> nn.Module:
    """A from PyTorch's own Kaiming-uniform (a = sqrt(5)), B from zero."""
    kind: Any = partial(nn.Conv2d, kernel_size=1) if site.layout is Layout.FIRST else nn.Linear
    down, up = kind(site.dim, rank, bias=False), kind(rank, site.dim, bias=False)
    nn.init.zeros_(up.weight)
    return nn.Sequential(down, up)

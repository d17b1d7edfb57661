"""UniPT: blocks are read in parallel and aggregated. Diao et al. 2024, arXiv:2308.14316."""

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
from ..core.site import Layout, Role, Sites
from ..errors import Unsupported
from ..values import Width


@method
@dataclass(frozen=True)
class UniPT(Method):
    """Tap the stem and every block, and classify what an anchor gathers from the taps.

    x_0 is the stem's output, x_i that of block i of L; x_L is the anchor, and y takes its place
    before the final norm:

        a = D_L(x_L),    t_i = D_i(x_i),  i < L,    D_i(x) = LN(W_i x + b_i)              (N, m)
        A_i = relu(a t_i^T), its rows divided by their sums
        w = softmax_i(<g, mean(a) * mean(t_i)>)
        y = U relu(a + LN(P sum_i w_i (A_i + I) t_i))

    This is the form of the authors' code for transformers. m = C / `reduction`; theirs is 2 for
    images and text and 1 for video, and none is published for classification.

    Parameters: ViT-B/16 2,110,272, with `reduction=2` 4,293,504; Swin-B 3,461,888; ConvNeXt-B
    5,011,200; ResNet-50 9,106,944.

    Merge: none, the taps form a network of their own.

    Saves:
        Per tap its input, 1 u on one grid and less where it is pooled, then m channels three times
        (the map LN normalises, t_i, the products A_i t_i) and N^2 weights per image. In the
        backbone nothing before its final norm: no block is on the gradient path.

    Differs:
        g has no bias, as softmax cancels it. On a hierarchy every tap is average pooled to the last
        grid first, without parameters, where the paper's ResNet has 1x1 convolutions with BatchNorm
        and weights positions as it pools.

    Attributes:
        reduction: Width of the last block over that of the taps, C / m.
        init: `paper` classifies y, all of it drawn anew; `identity` classifies x_L + y with U and
            its bias at zero, so that training starts at the backbone.
    """

    learning_rate: ClassVar[float] = 0.002

    reduction: Width = 4
    init: Literal["paper", "identity"] = "paper"

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ValueError(f"unipt needs a reduction of at least 1, not {self.reduction}")

    @property
    def identity(self) -> bool:
        """Whether the method promises that training starts exactly at the backbone."""
        return self.init == "identity"

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Run the taps beside the blocks.

        Args:
            sites: Every site of the backbone.

        Returns:
            One edit.

        Raises:
            Unsupported: There are no blocks, tokens without a grid change in number, or the last
                block is narrower than `reduction`.
        """
        blocks = need(sites.of(Role.BLOCK), "unipt", "blocks")
        last = blocks[-1]
        if last.dim < self.reduction:
            raise Unsupported(
                f"unipt divides a width by {self.reduction}, and {last.path} has {last.dim}"
            )
        for s in blocks:
            if len(s.in_shape) == 3 and s.tokens != last.out_shape[1]:
                raise Unsupported(f"unipt pools grids, and {s.path} has {s.tokens} tokens in none")
        return [Beside(partial(Taps, blocks, self), maps=True)]


class Taps(Side):
    """The parallel network; state is the taps so far, each `(B, N, m)`."""

    unmergeable: ClassVar[str] = "the taps are a network beside the backbone"

    def __init__(self, blocks: Sites, config: UniPT, classes: int) -> None:
        super().__init__()
        last = blocks[-1]
        self.first, self.layout, self.grid = blocks[0].path, last.layout, last.grid
        self.residual = config.identity
        m = last.dim // config.reduction
        self.stem = _down(blocks[0].in_dim, m)
        self.taps = nn.ModuleDict({key(s.path): _down(s.dim, m) for s in blocks[:-1]})
        self.anchor, self.project = _down(last.dim, m), _down(m, m)
        self.gate, self.up = nn.Linear(m, 1, bias=False), nn.Linear(m, last.dim)
        if self.residual:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def step(
        self, path: str, block: Block, x: Tensor, state: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tap a block's output, before the first block its input as well."""
        if path == self.first:
            state = (self.stem(self._tokens(x)),)
        x, name = block(x), key(path)
        return x, (*state, self.taps[name](self._tokens(x))) if name in self.taps else state

    def finish(self, x: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Gather the taps and replace the feature map.

        Args:
            x: Output of the last block.
            state: All taps.

        Returns:
            The gathered map, in the same layout on the same grid.

        Raises:
            Unsupported: The image is of another size than the model is made for.
        """
        own = x.shape[1:3] if self.layout is Layout.LAST else x.shape[2:]
        if x.ndim == 4 and tuple(own) != self.grid:
            raise Unsupported(
                f"unipt pools to {self.grid[0]} x {self.grid[1]} positions, and the last map has"
                f" {own[0]} x {own[1]}; use the image size the model was made for"
            )
        a = self.anchor(self._tokens(x))
        mean = a.mean(1)
        scores = [self.gate(mean * t.mean(1)) for t in state]
        weights = torch.cat(scores, 1).softmax(1)[:, :, None, None].unbind(1)
        gathered = sum(_gather(a, t, w) for t, w in zip(state, weights, strict=True))
        y = self._map(self.up(F.relu(a + self.project(gathered))), x)
        return x + y if self.residual else y

    def _tokens(self, x: Tensor) -> Tensor:
        """Bring a feature map to `(B, N, C)` on the last block's grid."""
        if x.ndim == 3:
            return x
        x = x if self.layout is Layout.FIRST else x.movedim(-1, 1)
        if x.shape[2:] != self.grid:
            x = F.adaptive_avg_pool2d(x, self.grid)
        return x.flatten(2).mT

    def _map(self, y: Tensor, like: Tensor) -> Tensor:
        """Bring tokens back to the backbone's layout."""
        if like.ndim == 3:
            return y
        y = y.unflatten(1, self.grid)
        return y.movedim(-1, 1) if self.layout is Layout.FIRST else y


def _gather(a: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """Compute w (A + I) t. Rows are scaled after the product, so that A is kept only once."""
    products = F.relu(a @ t.mT)
    sums = products.sum(2, keepdim=True).clamp_min(torch.finfo(a.dtype).eps)
    return (products @ t) * (w / sums) + w * t


def _down(wide: int, narrow: int) -> nn.Module:
    return nn.Sequential(nn.Linear(wide, narrow), nn.LayerNorm(narrow))

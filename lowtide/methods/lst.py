"""LST: a narrow transformer climbs a ladder beside the blocks. Sung et al. 2022, section 3."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.method import Beside, Edit, Method, method, need
from ..core.side import Block, Side, key
from ..core.site import Layout, Role, Sites
from ..errors import Unsupported
from ..values import Ratio, Width


@method
@dataclass(frozen=True)
class LST(Method):
    """Run a transformer of a fraction of the width beside the backbone, fed by every block.

    h_0 is the stem's output, h_i that of block i of L (arXiv:2206.06522):

        s_0 = W_in h_0,    W_in, W_i (C/r, C)
        s_i = Block_i(g_i s_{i-1} + (1 - g_i) W_i h_i),    g_i = sigmoid(alpha_i / T)
        y = W_out s_L,    W_out (C, C/r),  alpha = 0

    y takes the place of h_L before the final norm. Block_i is a pre-norm transformer block, C/r
    wide, with biases and an MLP of four times its width.

    Parameters: ViT-B/16 2,374,284; with a bias on every projection 2,376,300, which other papers'
    tables count (2.38 million); with `final_norm` as well 2,376,492.

    Merge: none, the ladder is a network of its own.

    Saves:
        Per block h_i, 1 u, and beside it 17 u / r: the difference that alpha scales, what the norms
        and linear maps read, q, k, v and the MLP's hidden layer twice. In the backbone nothing
        before its final norm: no block is on the gradient path.

    Differs:
        The paper copies the side blocks from a structurally pruned backbone; here PyTorch's
        initialisation draws them. Their heads are `head_dim` wide, where narrowing the backbone's
        own twelve on ViT-B would leave 8 channels each. The paper's side block is the backbone's
        kind of block; a transformer's stands beside token mixers too, and a hierarchy is refused,
        as attention over its first grid would cost more than its own blocks. The authors' code, for
        language, trains a norm of s_L before W_out as well, and may give the projections a bias:
        `final_norm` and `bias`.

    Attributes:
        reduction: Width of the backbone over that of the ladder, r.
        head_dim: Channels per head, at least; a narrower ladder has one head.
        temperature: T of the gates.
        bias: Give the projections W a bias.
        final_norm: Normalise s_L before W_out.
        init: `paper` classifies y; `identity` classifies h_L + y with W_out at zero, so that
            training starts at the backbone.
    """

    learning_rate: ClassVar[float] = 0.003

    reduction: Width = 8
    head_dim: Width = 32
    temperature: Ratio = 0.1
    bias: bool = False
    final_norm: bool = False
    init: Literal["paper", "identity"] = "paper"

    def __post_init__(self) -> None:
        if min(self.reduction, self.head_dim) < 1 or self.temperature <= 0:
            raise ValueError(
                "lst needs reduction and head_dim of at least 1 and a positive temperature, not"
                f" reduction={self.reduction} head_dim={self.head_dim}"
                f" temperature={self.temperature}"
            )

    @property
    def identity(self) -> bool:
        """Whether the method promises that training starts exactly at the backbone."""
        return self.init == "identity"

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Run the ladder beside the blocks.

        Args:
            sites: Every site of the backbone.

        Returns:
            One edit.

        Raises:
            Unsupported: Blocks that do not all map the same tokens to themselves, or a width that
                `reduction` does not divide.
        """
        blocks = need(sites.of(Role.BLOCK), "lst", "blocks")
        for s in blocks:
            last = s.layout is Layout.LAST
            if not last or not s.in_shape == s.out_shape == blocks[0].out_shape:
                raise Unsupported(
                    f"lst attends over one sequence of tokens, and {s.path} gives"
                    f" {s.tokens} positions in shape {s.out_shape[1:]}"
                )
        if blocks[0].dim % self.reduction:
            raise Unsupported(
                f"lst divides the width by {self.reduction}, and {blocks[0].path} has"
                f" {blocks[0].dim}"
            )
        return [Beside(partial(Ladder, blocks, self), maps=True)]


class Ladder(Side):
    """The side network; state is s, `(B, N, C/r)`."""

    unmergeable: ClassVar[str] = "the ladder is a network beside the backbone"

    def __init__(self, blocks: Sites, config: LST, classes: int) -> None:
        super().__init__()
        wide, narrow = blocks[0].dim, blocks[0].dim // config.reduction
        self.first, self.residual = blocks[0].path, config.identity
        self.enter = nn.Linear(wide, narrow, bias=config.bias)
        self.rungs = nn.ModuleDict({key(s.path): Rung(wide, narrow, config) for s in blocks})
        self.norm = nn.LayerNorm(narrow, eps=1e-6) if config.final_norm else nn.Identity()
        self.leave = nn.Linear(narrow, wide, bias=config.bias)
        if self.residual:
            for p in self.leave.parameters():
                nn.init.zeros_(p)

    def step(
        self, path: str, block: Block, x: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Climb one rung after a block; the state is s."""
        if path == self.first:
            state = self.enter(x.flatten(1, -2))
        x, name = block(x), key(path)
        return x, self.rungs[name](x.flatten(1, -2), state) if name in self.rungs else state

    def finish(self, x: Tensor, state: Tensor) -> Tensor:
        """Replace the feature map by the ladder's."""
        y = self.leave(self.norm(state)).view(x.shape)
        return x + y if self.residual else y


class Rung(nn.Module):
    """One gate and one transformer block of the ladder."""

    def __init__(self, wide: int, narrow: int, config: LST) -> None:
        super().__init__()
        most = max(1, narrow // config.head_dim)
        self.heads = next(h for h in range(most, 0, -1) if narrow % h == 0)
        self.temperature = config.temperature
        self.down = nn.Linear(wide, narrow, bias=config.bias)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.norm1, self.norm2 = (nn.LayerNorm(narrow, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(narrow, 3 * narrow), nn.Linear(narrow, narrow)
        self.fc1, self.fc2 = nn.Linear(narrow, 4 * narrow), nn.Linear(4 * narrow, narrow)

    def forward(self, h: Tensor, s: Tensor) -> Tensor:
        """Mix the backbone's tokens into the ladder's and run the block.

        Args:
            h: The backbone block's output, `(B, N, C)`.
            s: The ladder so far, `(B, N, C/r)`.

        Returns:
            The next s.
        """
        h = self.down(h)
        s = h + torch.sigmoid(self.alpha / self.temperature) * (s - h)
        s = s + self.proj(self._attention(self.norm1(s)))
        return s + self.fc2(F.gelu(self.fc1(self.norm2(s))))

    def _attention(self, s: Tensor) -> Tensor:
        q, k, v = self.qkv(s).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

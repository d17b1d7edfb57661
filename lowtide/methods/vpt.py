"""VPT: visual prompt tuning. Jia et al. 2022, arXiv:2203.12119, section 3.2."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core.graft import Graft
from ..core.method import Beside, Edit, Method, Swap, method
from ..core.side import Block, Side, key
from ..core.site import Layout, Role, Site, Sites
from ..errors import Unsupported
from ..values import Share, Width


@method
@dataclass(frozen=True)
class VPT(Method):
    """Give the blocks n extra tokens to attend to, the prompts.

    Shallow: one set enters before the first block and runs through all of them. Deep: every block
    i has its own, and what it makes of them is dropped:

        [x_i, _] = block_i([x_{i-1}, P_i])                                                (eq. 5)

    A backbone of windows shows each window the prompts of its image, and prompts that run on become
    the mean of what the windows make of them. A convolutional backbone has no tokens: there the
    image gets a border of learnable pixels, the paper's prompts for ConvNets.

    P ~ U(-v, v), v = sqrt(6 / (p^2 3 + C)), with p x p patches of 3 channels and C features; the
    border starts at N(0, 1), the spread of normalised pixels.

    Parameters: n C, deep n sum(C); n = 50, deep: ViT-B/16 460,800; Swin-B 601,600.

    Merge: no.

    Saves:
        What a frozen block keeps, for N + n tokens instead of N. The first block keeps it too.
        With dropout, a mask of n C per image and set of prompts.

    Differs:
        Prompts stand apart from class token and patches, not between them: attention has no order.
        The official code for Swin orders prompt copies by window and windows by image, so that
        shallow prompts mix images; here images stay apart. Dropout draws for each image, as the
        official code for ViT does; that for Swin, deep, draws once for all. The paper finds that
        pooling prompts costs accuracy, and the official code for Swin does it: `pool_prompts`.

    Attributes:
        depth: `deep` or `shallow`.
        tokens: Prompts n per block.
        dropout: Probability of dropping a channel of a prompt; by default 0.1 deep and 0 shallow.
        pixels: Width of the border that a convolutional backbone gets.
        pool_prompts: Let a backbone of windows average the last block's prompts with its patches.
    """

    learning_rate: ClassVar[float] = 0.01

    depth: Literal["deep", "shallow"] = "deep"
    tokens: Width = 50
    dropout: Share | None = None
    pixels: Width = 5
    pool_prompts: bool = False

    def __post_init__(self) -> None:
        if min(self.tokens, self.pixels) < 1:
            raise ValueError(
                f"vpt needs tokens and pixels of at least 1, not {self.tokens} and {self.pixels}"
            )

    @property
    def identity(self) -> bool:
        """Whether the method promises that training starts exactly at the backbone."""
        return False

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Run prompts beside the blocks, or put a border around the image.

        Args:
            sites: Every site of the backbone.

        Returns:
            One edit.

        Raises:
            Unsupported: The backbone has a fixed number of tokens; or prompts are to be pooled, and
                its last map is no grid that is averaged.
        """
        blocks, stem = sites.of(Role.BLOCK), sites.of(Role.STEM)
        if not blocks or not stem:
            raise Unsupported("vpt prompts blocks, and this backbone has no table")
        if self.pool_prompts and not (blocks[-1].elastic and len(blocks[-1].out_shape) == 4):
            raise Unsupported(
                f"vpt's pool_prompts is for backbones of windows, and {blocks[-1].path} gives"
                f" {blocks[-1].out_shape[1:]}"
            )
        if all(s.elastic for s in blocks):
            return [Beside(partial(Prompts, blocks, stem[0], self))]
        if blocks[0].layout is Layout.FIRST and not sites.of(Role.ATTN):
            return [Swap(stem[0], partial(Border, site=stem[0], pixels=self.pixels))]
        raise Unsupported(f"vpt adds tokens, and {blocks[0].path} takes a fixed number")


class Prompts(Side):
    """Tokens that the blocks see; state: those that run on, `(B, n, C)`."""

    unmergeable: ClassVar[str] = (
        "prompts are tokens, and no weight of the backbone can stand for them"
    )

    def __init__(self, blocks: Sites, stem: Site, config: VPT, classes: int) -> None:
        super().__init__()
        prompted = blocks if config.depth == "deep" else blocks[:1]
        _, channels, height, width = stem.in_shape
        rows, columns = blocks[0].grid
        patch = channels * (height // rows) * (width // columns)
        bound = (6 / (patch + blocks[0].dim)) ** 0.5
        self.prompts = nn.ParameterDict({
            key(s.path): nn.Parameter(torch.empty(config.tokens, s.dim).uniform_(-bound, bound))
            for s in prompted
        })
        self.deep = config.depth == "deep"
        chosen = 0.1 * self.deep if config.dropout is None else config.dropout
        self.drop = nn.Dropout(chosen)
        self.pooled, self.last = config.pool_prompts, blocks[-1].path

    def step(
        self, path: str, block: Block, x: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run one element of the chain, with this block's prompts or with those that run on."""
        name = key(path)
        if name in self.prompts:
            state = self.drop(self.prompts[name].expand(x.shape[0], -1, -1))
        if state is None:
            return block(x), None
        x, state = block(x, state)
        return x, None if self.deep and path != self.last else state

    def finish(self, x: Tensor, state: Tensor) -> Tensor:
        """Put prompts that are pooled beside the patches to average, as a grid of one row."""
        return torch.cat([x.flatten(1, 2), state], 1)[:, None] if self.pooled else x


class Border(Graft):
    """`base` on the image inside a border of learnable pixels."""

    unmergeable: ClassVar[str] = "it adds pixels around the image"

    def __init__(self, base: nn.Module, site: Site, pixels: int) -> None:
        super().__init__(base)
        channels, height, width = site.in_shape[1:]
        self.pixels = pixels
        self.rows = nn.Parameter(torch.randn(2, channels, pixels, width + 2 * pixels))
        self.columns = nn.Parameter(torch.randn(2, channels, height, pixels))

    def forward(self, x: Tensor) -> Tensor:
        """Surround the image and run the base.

        Args:
            x: `(B, 3, H, W)`, of the size the border was made for.

        Returns:
            The base's output, for `H + 2 pixels` by `W + 2 pixels`.

        Raises:
            Unsupported: The image has another size.
        """
        if (
            x.shape[2] != self.columns.shape[2]
            or x.shape[3] + 2 * self.pixels != self.rows.shape[3]
        ):
            raise Unsupported(
                f"vpt's border is made for {self.columns.shape[2]} pixels, not {x.shape[2]};"
                " use the image size it was trained for"
            )
        left, right = (c.expand(x.shape[0], -1, -1, -1) for c in self.columns)
        top, bottom = (r.expand(x.shape[0], -1, -1, -1) for r in self.rows)
        return self.base(torch.cat([top, torch.cat([left, x, right], 3), bottom], 2))

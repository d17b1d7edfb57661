"""S2A: bias, low-rank prompt and lite side branch. Jin et al. 2025, section 3.1, eqs. 3-6."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.graft import Graft
from ..core.method import Beside, Edit, Method, Swap, Thaw, method
from ..core.side import Block, Side, key
from ..core.site import Layout, Role, Site, Sites
from ..errors import Unsupported
from ..values import Scale, Width


@method
@dataclass(frozen=True)
class S2A(Method):
    """Train what needs no full-size activation: biases, a prompt, and a thin branch beside.

    Bias: every bias of the backbone. Low-rank prompt, on the input of attention (of the depthwise
    convolution where there is none), one per block, shared by all windows of a windowed backbone:

        y = x + A B,    A (N, r) = 0,  B (r, C) ~ N(0, sigma^2)                          (eq. 3)

    Lite side branch, per block, on the block's output averaged over groups of `reduction`
    neighbouring channels (CAP, eq. 5):

        y_i = PW(DW(PW(CAP(x_i) + y_{i-1})))                                             (eq. 6)

    each convolution followed by a LayerNorm, the first two by ReLU as well; class and register
    tokens have no place on the grid and skip DW. Where the backbone changes stage, y is average
    pooled and its channels repeated. The mean of the last y over all tokens is concatenated to the
    backbone's features before the classifier.

    Where the backbone gives feature maps and no classifier, y_i W_i is added to the map x_i at the
    end of each stage, with W_i (C / reduction, C) = 0: a linear reader of `[x_i, y_i]` is one of
    x_i + y_i W_i.

    Parameters, K = 100: ViT-B/16 775,276; Swin-B 889,428; ConvNeXt-B with `prompt_every=2,
    affine=False` 858,516 (the paper's 0.90 %, 1.03 %, 0.98 %).

    Merge: biases are merged already; prompt and branch cannot be.

    Saves:
        Branch: per block three normalised maps, two ReLU signs and three convolution inputs, each
        1/`reduction` as wide as the block. Bias and prompt: nothing.

    Differs:
        No code is published, and the paper leaves open, chosen here: where prompts stand (on what
        qkv reads, behind the norm and inside the window) and branches (one per block), the branch's
        norms, activations and convolution biases (none, as a norm follows), stage changes, class
        tokens, pooling and sigma. With these its counts on ViT and Swin come out; on ConvNeXt it
        takes every second prompt and no affine norms. policy `s2a` says what it chooses. The side
        feature is read off the last map; a class token alone would leave every DW without a
        gradient, so we take the mean over tokens. The classifier's rows for it start at zero, so
        that training starts at the backbone.

    Attributes:
        bias: Train the biases.
        prompt: Add the low-rank prompt.
        side: Add the lite side branch.
        rank: Rank r of the prompt.
        sigma: Standard deviation of B at the start.
        reduction: Channels averaged into one by CAP.
        prompt_every: Put a prompt on every so many blocks of a stage.
        tile: Side of the square of positions that a convolution's prompt repeats over the grid.
        affine: Whether the branch's norms have a scale and a shift.
    """

    learning_rate: ClassVar[float] = 0.005

    bias: bool = True
    prompt: bool = True
    side: bool = True
    rank: Width = 30
    sigma: Scale = 0.02
    reduction: Width = 8
    prompt_every: Width = 1
    tile: Width = 7
    affine: bool = True

    def __post_init__(self) -> None:
        if min(self.rank, self.reduction, self.prompt_every, self.tile) < 1:
            raise ValueError("s2a needs rank, reduction, prompt_every and tile of at least 1")

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Thaw biases, graft prompts, and run the branch beside the blocks.

        Args:
            sites: Every site of the backbone.

        Returns:
            The edits of the parts that are switched on.

        Raises:
            Unsupported: The branch is on and the backbone has no blocks of a known family, or a
                width that CAP does not divide.
        """
        edits: list[Edit] = []
        if self.bias:
            edits += [Thaw(s, s.biases) for s in sites if s.biases and s.role is not Role.HEAD]
        if self.prompt:
            edits += [
                Swap(s, partial(PromptGraft, site=s, config=self)) for s in self._prompted(sites)
            ]
        if self.side:
            blocks = sites.of(Role.BLOCK)
            if not blocks:
                raise Unsupported("s2a's side branch reads blocks, and this backbone has no table")
            for s in blocks:
                if s.dim % self.reduction:
                    raise Unsupported(
                        f"s2a averages {self.reduction} channels into one, and {s.path} has {s.dim}"
                    )
            edits.append(Beside(partial(SideBranch, blocks, self), maps=True))
        if not edits:
            raise Unsupported("s2a has nothing to train here: no part that fits is switched on")
        return edits

    def _prompted(self, sites: Sites) -> list[Site]:
        found = []
        for stage in sites.stages:
            depths = [s.depth for s in stage][self.prompt_every - 1 :: self.prompt_every]
            found += [
                s
                for s in sites
                if s.depth in depths
                and (s.role is Role.QKV or (s.role is Role.CONV and s.depthwise))
            ]
        return found


class PromptGraft(Graft):
    """`base(x + A B)`; the same A and B for every image and every window."""

    unmergeable: ClassVar[str] = "a prompt differs from position to position, which no bias can"

    def __init__(self, base: nn.Module, site: Site, config: S2A) -> None:
        super().__init__(base)
        self.tile = None if site.layout is Layout.LAST else min(config.tile, *site.in_shape[2:])
        self.prefix = site.prefix if self.tile is None else 0
        tokens = site.tokens if self.tile is None else self.tile**2
        self.A = nn.Parameter(torch.zeros(tokens, config.rank))
        self.B = nn.Parameter(config.sigma * torch.randn(config.rank, site.in_dim))

    def ahead(self, x: Tensor) -> Tensor:
        """Add the prompt: `(B, N, C)`, `(B, H, W, C)`, or `(B, C, H, W)` for a convolution."""
        if self.tile is None:
            places = x.shape[1:-1]
            return x + (self._rows(self.A, places.numel()) @ self.B).view(*places, -1)
        h, w = x.shape[2:]
        square = (self.A @ self.B).T.unflatten(1, (self.tile, self.tile))
        return x + square.repeat(1, -(-h // self.tile), -(-w // self.tile))[:, :h, :w]

    def fitted(self, name: str, value: Tensor) -> Tensor:
        """Resample A where it was trained on another number of positions."""
        same = value.shape[1:] == self.A.shape[1:]
        return self._rows(value, len(self.A)) if name == "A" and same else value

    def _rows(self, rows: Tensor, count: int) -> Tensor:
        """Interpolate the rows of patch positions, as position embeddings are, on square grids."""
        before, after = (round((n - self.prefix) ** 0.5) for n in (len(rows), count))
        if len(rows) == count:
            return rows
        if before**2 + self.prefix != len(rows) or after**2 + self.prefix != count:
            raise Unsupported(
                f"s2a's prompt has {len(rows)} positions and the input {count}; only square grids"
                " can be resampled: use the image size it was trained for"
            )
        grid = rows[self.prefix :].T.unflatten(1, (before, before))[None]
        grid = F.interpolate(grid, (after, after), mode="bicubic", antialias=True)
        return torch.cat([rows[: self.prefix], grid[0].flatten(1).T])


State = tuple[Tensor, tuple[int, int]]
"""A branch's output `(B, N, c)`, and the grid that its patches lie on."""


class SideBranch(Side):
    """A thin network that reads every block; state is its last output."""

    unmergeable: ClassVar[str] = "the side branch is a network beside the backbone"

    def __init__(self, blocks: Sites, config: S2A, classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({key(s.path): Branch(s, config) for s in blocks})
        thin = partial(nn.Linear, bias=False)
        last = blocks[-1].dim // config.reduction
        self.head = thin(last, classes) if classes else None
        ends = [] if classes else [stage[-1] for stage in blocks.stages]
        self.maps = nn.ModuleDict({
            key(s.path): thin(s.dim // config.reduction, s.dim) for s in ends
        })
        self.axis = blocks[-1].layout.value
        for p in (*self.maps.parameters(), *(self.head.parameters() if self.head else ())):
            nn.init.zeros_(p)

    def step(
        self, path: str, block: Block, x: Tensor, state: State | None
    ) -> tuple[Tensor, State | None]:
        """Run the branch of one block; the backbone is left alone, but for maps that are read."""
        x, name = block(x), key(path)
        state = self.branches[name](x, state) if name in self.branches else state
        if name in self.maps and state is not None:
            y = self.maps[name](state[0])
            x = x + (y.mT if self.axis > 0 else y).reshape(x.shape)
        return x, state

    def classify(self, logits: Tensor, state: State) -> Tensor:
        """Add the side feature's share: `[features, side] W^T + b`, written as a sum."""
        return logits if self.head is None else logits + self.head(state[0].mean(1))


class Branch(nn.Module):
    """PW, DW 3x3, PW of one block, on `dim // reduction` channels."""

    def __init__(self, site: Site, config: S2A) -> None:
        super().__init__()
        self.prefix, self.grid = site.prefix, site.grid
        self.axis, self.reduction = site.layout.value, config.reduction
        c = site.dim // config.reduction
        self.pw1, self.pw2 = nn.Linear(c, c, bias=False), nn.Linear(c, c, bias=False)
        self.dw = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        self.norm1, self.norm2, self.norm3 = (
            nn.LayerNorm(c, elementwise_affine=config.affine) for _ in range(3)
        )

    def forward(self, x: Tensor, state: State | None) -> State:
        """Compute the branch's next output from the block's and the previous branch's."""
        grid = self.grid
        if x.ndim == 4:
            grid = (x.shape[2], x.shape[3]) if self.axis > 0 else (x.shape[1], x.shape[2])
        pooled = self._average_channels(x)
        y = pooled if state is None else pooled + _fit(*state, pooled, grid)
        y = F.relu(self.norm1(self.pw1(y)))
        y = F.relu(self.norm2(self._depthwise(y, grid)))
        return self.norm3(self.pw2(y)), grid

    def _average_channels(self, x: Tensor) -> Tensor:
        c = x.shape[self.axis] // self.reduction
        x = x.unflatten(self.axis, (c, self.reduction)).mean(self.axis if self.axis < 0 else 2)
        return x.flatten(2).mT if self.axis > 0 else x.flatten(1, -2)

    def _depthwise(self, y: Tensor, grid: tuple[int, int]) -> Tensor:
        prefix, patches = y[:, : self.prefix], y[:, self.prefix :]
        if patches.shape[1] != grid[0] * grid[1]:
            raise Unsupported(
                f"s2a's side branch is made for {grid[0]} x {grid[1]} patches, and the image has"
                f" {patches.shape[1]}; use the image size the model was made for"
            )
        patches = self.dw(patches.mT.unflatten(2, grid)).flatten(2).mT
        return torch.cat([prefix, patches], 1) if self.prefix else patches


def _fit(state: Tensor, before: tuple[int, int], like: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring the last stage's state to this one's grid and width, without parameters."""
    if grid != before:
        state = F.adaptive_avg_pool2d(state.mT.unflatten(2, before), grid).flatten(2).mT
    c = like.shape[2]
    return state if state.shape[2] == c else F.interpolate(state, c, mode="nearest")

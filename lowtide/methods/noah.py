"""NOAH: prompts, LoRA and an adapter of their own widths in every block. arXiv:2206.04673."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.graft import Graft
from ..core.linear_maps import bottleneck, fold, low_rank, product
from ..core.method import Beside, Edit, Method, Swap, method
from ..core.side import Block, Side, key
from ..core.site import Role, Site, Sites
from ..errors import Unsupported
from ..ops.unary import QuickGELU
from ..values import Share, Within

Widths = tuple[Annotated[int, Within(0, 4096)], ...]
"""One width for each block, or one for all."""
PARTS = ("prompts", "lora", "adapter")
"""The three modules that have widths, by the names of their options."""


@method
@dataclass(frozen=True)
class NOAH(Method):
    """Give block i its own n_i prompts, LoRA of rank r_i and adapter of width a_i.

        [x, _] = block_i([x, P_i]),    qkv = W z + B_i A_i z,
        y = f(z),  MLP branch = y + U_i drop(phi(D_i y + d_i)) + u_i,    phi(h) = h s(1.702 h)

    The prompts of the block before are dropped where a block has its own, and run on where n_i = 0.
    One A (C -> r) and one B (r -> 3C) serve queries, keys and values together. f is the MLP. A
    width of 0 leaves the module out. `lowtide search` looks for the widths.

    P, D and U are Xavier-uniform (P with the bound of VPT's patches), A ~ Kaiming-uniform
    (a = sqrt(5)), the rest is zero: it starts at the backbone only without prompts and adapters.

    Parameters: sum over the blocks of `n C + 4 r C + 2 a C + a + C [a > 0]`; the 19 networks that
    were released for VTAB-1k have 0.36 M in the mean.

    Merge: LoRA exactly, `W' = W + B A`; prompts and adapters do not.

    Saves:
        What a frozen block keeps, for N + n tokens instead of N; LoRA's input and its `r` channels;
        the adapter's input, and `a` channels before and after phi; masks of the dropout.

    Differs:
        The authors' code has another set of prompts with positions in front of block 0, which
        replaces it at once: they never get a gradient, are counted (`n_0 C + 100 C`: 0.44 M in the
        mean), and are left out here. Their biases start at N(0, 1e-12). Stochastic depth drops the
        MLP in front of the adapter there; here `drop_path` drops the branch, adapter included.

    Attributes:
        prompts: Prompts n of each block: one number for all blocks, or as many as blocks.
        lora: Ranks r on the fused qkv map, likewise.
        adapter: Widths a behind the MLP, likewise.
        dropout: Probability of dropping a channel of a prompt, of LoRA's input and of the adapter
            behind phi.
    """

    learning_rate: ClassVar[float] = 0.005

    prompts: Widths = (5,)
    lora: Widths = (5,)
    adapter: Widths = (5,)
    dropout: Share = 0.1

    def __post_init__(self) -> None:
        widths = {part: getattr(self, part) for part in PARTS}
        if not all(widths.values()) or not any(map(any, widths.values())):
            raise ValueError(
                "noah needs widths for prompts, lora and adapter, one of them above 0, not"
                f" {' '.join(f'{n}={list(w)}' for n, w in widths.items())}"
            )

    @property
    def identity(self) -> bool:
        """Whether the method promises that training starts exactly at the backbone."""
        return not any(self.prompts + self.adapter)

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft LoRA and adapters where they have a width, and run prompts beside the blocks.

        Args:
            sites: Every site of the backbone.

        Returns:
            One edit per LoRA and adapter, and one for all prompts.

        Raises:
            Unsupported: The backbone has other blocks than the widths, or not what they are for.
        """
        blocks = sites.of(Role.BLOCK)
        prompts = self._wide(blocks, blocks, "prompts", "blocks")
        lora = self._wide(blocks, sites.of(Role.QKV), "lora", "a fused qkv map in every block")
        adapters = self._wide(blocks, sites.of(Role.MLP), "adapter", "an MLP in every block")
        edits: list[Edit] = [
            Swap(site, partial(kind, site=site, width=width, dropout=self.dropout))
            for kind, wide in ((FusedLoRA, lora), (Bottleneck, adapters))
            for site, width in wide.items()
        ]
        if not prompts:
            return edits
        stem = sites.of(Role.STEM)
        if fixed := [s.path for s in blocks if not s.elastic]:
            raise Unsupported(f"noah's prompts are tokens, and {fixed[0]} takes a fixed number")
        return [*edits, Beside(partial(Prompts, blocks, stem[0], prompts, self.dropout))]

    def _wide(self, blocks: Sites, places: Sites, part: str, what: str) -> dict[Site, int]:
        """Give the places of a part that have a width, in order of the blocks."""
        widths = getattr(self, part)
        if not any(widths):
            return {}
        if len(widths) not in (1, len(blocks)):
            raise Unsupported(
                f"noah has {len(widths)} widths for {part} and this backbone {len(blocks)} blocks:"
                f" give {len(blocks)}, or one for all"
            )
        by_depth = {s.depth: s for s in places if s.depth >= 0 and s.in_shape}
        wanted = dict(enumerate(widths if len(widths) > 1 else widths * len(blocks)))
        if not blocks or any(width and depth not in by_depth for depth, width in wanted.items()):
            raise Unsupported(f"noah's {part} needs {what}; {part} [0] leaves it out")
        return {by_depth[depth]: width for depth, width in wanted.items() if width}


def leading(name: str, value: Tensor, width: int) -> Tensor:
    """Cut a wider module's tensor to a narrower module's shape: the first rows, or columns.

    Args:
        name: The tensor's local name, such as `down.weight`; that of prompts is their block's.
        value: The wider module's tensor.
        width: Prompts, rank or channels; 0 takes none.

    Returns:
        A view. A shift of the output, which has no width, is whole.
    """
    if name == "up.weight":
        return value[:, :width]
    return value if name == "up.bias" else value[:width]


class FusedLoRA(Graft):
    """`base(x) + up(down(drop(x)))` over queries, keys and values together."""

    positionwise = True

    def __init__(self, base: nn.Module, site: Site, width: int, dropout: float) -> None:
        super().__init__(base)
        self.drop = nn.Dropout(dropout)
        self.down, self.up = low_rank(self.root, width)

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the update."""
        return y + self.up(self.down(self.drop(x))) if len(_weight(self.down)) else y

    def merged(self) -> nn.Module | None:
        """Fold the product of the factors into the base's weight."""
        return fold(self.base, delta=product(self.down, self.up))


class Bottleneck(Graft):
    """`y + up(drop(phi(down(y))))` with `y = base(x)`."""

    unmergeable: ClassVar[str] = "an activation stands between its maps"

    def __init__(self, base: nn.Module, site: Site, width: int, dropout: float) -> None:
        super().__init__(base)
        self.down, self.up = bottleneck(site.layout, site.dim, width)
        for module in (self.down, self.up):
            nn.init.xavier_uniform_(_weight(module))
        self.act = QuickGELU()
        self.drop = nn.Dropout(dropout)

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Run the bottleneck behind the base."""
        if not len(_weight(self.down)):
            return y
        return y + self.up(self.drop(self.act(self.down(y))))


class Prompts(Side):
    """Tokens that the blocks see; state: those that came out of the last block, `(B, n, C)`."""

    unmergeable: ClassVar[str] = (
        "prompts are tokens, and no weight of the backbone can stand for them"
    )

    def __init__(
        self, blocks: Sites, stem: Site, prompts: Mapping[Site, int], dropout: float, classes: int
    ) -> None:
        super().__init__()
        _, channels, height, width = stem.in_shape
        rows, columns = blocks[0].grid
        patch = channels * (height // rows) * (width // columns)
        bound = (6 / (patch + blocks[0].dim)) ** 0.5
        self.prompts = nn.ParameterDict({
            key(s.path): nn.Parameter(torch.empty(count, s.dim).uniform_(-bound, bound))
            for s, count in prompts.items()
        })
        self.drop = nn.Dropout(dropout)
        self.last = blocks[-1].path

    def step(
        self, path: str, block: Block, x: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run one element of the chain, with its own prompts or with those that run on.

        Args:
            path: Its path.
            block: Runs it.
            x: Its input.
            state: Prompts from the element before; None before the first.

        Returns:
            Its output without prompts, and the prompts that run on.
        """
        name = key(path)
        if name in self.prompts and len(self.prompts[name]):
            state = self.drop(self.prompts[name].expand(x.shape[0], -1, -1))
        if state is None:
            return block(x), None
        x, state = block(x, state)
        return x, None if path == self.last else state


def _weight(module: nn.Module) -> Tensor:
    """The weight as it stands: a part of a wider one's, where that is put in its place."""
    weight: Any = module.weight
    return weight

"""Where a method may touch a backbone: facts about places, and nothing else.

No method, no family and no torch module is named here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum

BIASES = ("bias", "q_bias", "v_bias")
"""Exact names: a substring would also match `relative_position_bias_table`, no bias of a layer."""


class Role(StrEnum):
    """What a module does in its backbone. Closed on purpose: methods speak this vocabulary only."""

    STEM = "stem"
    """The first linear map, from pixels to features."""
    BLOCK = "block"
    """One residual unit of the chain."""
    DOWN = "down"
    """A linear map between stages, or on the shortcut of a block that changes resolution."""
    NORM = "norm"
    ATTN = "attn"
    """A whole attention module."""
    MLP = "mlp"
    """A whole channel MLP."""
    QKV = "qkv"
    """The fused projection to queries, keys and values."""
    PROJ = "proj"
    FC1 = "fc1"
    FC2 = "fc2"
    LINEAR = "linear"
    """A linear map with no other role."""
    ACT = "act"
    CONV = "conv"
    """A linear map that mixes space."""
    HEAD = "head"
    """The classifier."""
    OTHER = "other"
    """Holds parameters of its own and has no role in any method's formula."""


class Layout(Enum):
    """Which axis of a feature map holds the channels."""

    LAST = -1
    FIRST = 1


@dataclass(frozen=True)
class Site:
    """One place of a backbone, as facts measured on the untouched model.

    Attributes:
        path: Qualified module name, e.g. `blocks.3.attn.qkv`; empty for the backbone itself.
        role: What the module does there.
        depth: Index of the enclosing block in the chain; -1 outside the chain.
        layout: Channel axis of the module's output.
        in_shape: Shape of its first input for one image; empty where it is never called.
        out_shape: Shape of its output for one image.
        params: Names of the module's own parameters.
        elastic: Whether extra tokens may run along here.
        halved: Whether something may run between its attention and its MLP.
        prefix: Tokens before the patch tokens (class and register tokens).
        depthwise: Whether it is a convolution that keeps channels apart.
        kernel: Height and width of what a convolution reads at once; 1 and 1 for anything else.
        patches: Height and width of the grid the stem cuts an image into; 0 and 0 where unknown.
        part: `q`, `k` or `v` where queries, keys and values have linear maps of their own, and this
            gives that one; or nothing.
        barred: Why nothing can be grafted here although the module's kind has a role; or nothing.
        barred_role: That role.
        affine: Whether it is a norm with a scale of its own, be it a frozen one, as a buffer.
    """

    path: str
    role: Role
    depth: int
    layout: Layout
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    params: tuple[str, ...]
    elastic: bool = False
    halved: bool = False
    prefix: int = 0
    depthwise: bool = False
    kernel: tuple[int, int] = (1, 1)
    patches: tuple[int, int] = (0, 0)
    part: str = ""
    barred: str = ""
    barred_role: Role | None = None
    affine: bool = False

    @property
    def dim(self) -> int:
        """Channels of the output."""
        return self.out_shape[self.layout.value]

    @property
    def in_dim(self) -> int:
        """Channels of the input."""
        return self.in_shape[self.layout.value]

    @property
    def biases(self) -> tuple[str, ...]:
        """Names of its own parameters that are biases."""
        return tuple(n for n in BIASES if n in self.params)

    @property
    def tokens(self) -> int:
        """Positions of the input that carry one channel vector each."""
        return math.prod(self.in_shape) // (self.in_shape[0] * self.in_dim)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the output's patch grid; as the stem cuts it, else a square."""
        if len(self.out_shape) == 4:
            return self.out_shape[2:] if self.layout is Layout.FIRST else self.out_shape[1:3]
        count = self.out_shape[1] - self.prefix
        if self.patches[0] * self.patches[1] == count:
            return self.patches
        side = round(count**0.5)
        return side, side


class Sites(tuple[Site, ...]):
    """Every site of one backbone, in the order its modules are defined."""

    def of(self, *roles: Role) -> Sites:
        """Keep the sites of some roles.

        Args:
            *roles: The roles to keep.

        Returns:
            The matching sites, in order.
        """
        return self.where(lambda s: s.role in roles)

    def where(self, test: Callable[[Site], bool]) -> Sites:
        """Keep the sites that pass a test.

        Args:
            test: Says which sites to keep.

        Returns:
            The matching sites, in order.
        """
        return Sites(s for s in self if test(s))

    @property
    def before(self) -> Sites:
        """The sites in front of the first block; nothing where no blocks are known."""
        at = [i for i, s in enumerate(self) if s.role is Role.BLOCK]
        return Sites(self[: at[0]] if at else ())

    @property
    def between(self) -> Sites:
        """The sites between two blocks and in neither, as where a backbone changes stage."""
        at = [i for i, s in enumerate(self) if s.role is Role.BLOCK]
        return Sites(s for s in self[at[0] : at[-1]] if s.depth < 0) if at else Sites()

    @property
    def stages(self) -> list[Sites]:
        """The blocks, cut wherever resolution or width changes."""
        found: list[list[Site]] = []
        for s in self.of(Role.BLOCK):
            if found and found[-1][-1].out_shape == s.out_shape:
                found[-1].append(s)
            else:
                found.append([s])
        return [Sites(stage) for stage in found]

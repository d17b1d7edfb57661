"""RLRR: low-rank rescaling of frozen maps, with a residual. Dong et al. 2024, CVPR, eqs. 16, 20."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs.base import Residue
from ..codecs.exact import Exact
from ..core.graft import Graft
from ..core.linear_maps import fold
from ..core.method import Edit, Method, Swap, method, need
from ..core.scale_shift import ScaleShift
from ..core.site import Layout, Role, Site, Sites
from ..errors import Unsupported
from ..memory.frozen_dtype import Frozen
from ..ops.frozen import Slabs
from ..ops.linear import autocast
from ..ops.saved import Forward, Needs, Op, Tensors, saved

RESCALED = (Role.QKV, Role.PROJ, Role.FC1, Role.FC2, Role.LINEAR, Role.DOWN, Role.CONV)


@method
@dataclass(frozen=True)
class RLRR(Method):
    """Rescale the rows and columns of every frozen map, beside the map itself.

        y = W x + s_r * (W (s_l * x)) + b + f,    W' = (1 + s_r s_l^T) * W,  b' = b + f

    with `s_l` over the inputs and `s_r` over the outputs (the paper writes x W: its left is our
    input). `s_l ~ U(+-sqrt(6 / in))`, `s_r ~ U(+-sqrt(6))`, `f = 0`: training starts at W with
    noise on every entry. The parts of a fused qkv map have each their own s_l. What every norm
    gives, and the patch embedding, is scaled and shifted as in SSF. A backbone with stages is
    treated as the authors treat Swin: qkv has one s_l, the map between stages is rescaled, and of
    the norms only those in blocks and the last one are scaled, the patch embedding is not.

    Parameters: ViT-B/16 288,768, with one side 205,824; Swin-B 358,144; ConvNeXt-B 347,392.

    Merge: exact, as above. The shift that the authors give to Swin's map between stages has no
    place in a plain backbone: `reduction_bias=False` leaves it out, and all of it merges.

    Saves:
        The input of every linear map and what is scaled after a norm: 9 u per ViT block. No tensor
        of a weight's size is made: `W (s_l * x)` is computed once more in backward. A convolution
        keeps its input and `W (s_l * x)`.

    Differs:
        The authors train on W' itself, which keeps two tensors of W's size per map. Their unused
        version for convolutions has vectors over channels times kernel positions; ours go over
        channels, which is the same for 1x1 and has a feature form for every kernel. Depthwise
        convolutions have one factor per channel either way, and are scaled and shifted. Apart from
        that reduction, a map without a bias gets no shift. For one side with residual no start is
        published: U(+-sqrt(6 / n)), n its length; sqrt(6) alone would drown W. The authors decay
        s_l and s_r; here vectors never decay.

    Attributes:
        sides: Which of s_l and s_r there are.
        residual: Keep W beside the rescaled W. Without, `W' = s_r s_l^T * W`; the vectors start at
            N(1, 0.02^2) and f at N(0, 0.02^2), and no other method may stand below.
        reduction_bias: Shift a linear map between stages although it has no bias.
        init: `paper` starts at the values above; `identity` at s_r = 0 (one side: at 0; without
            residual: at 1), gamma = 1 and no shifts.
    """

    learning_rate: ClassVar[float] = 0.005

    sides: Literal["both", "left", "right"] = "both"
    residual: bool = True
    reduction_bias: bool = True
    init: Literal["paper", "identity"] = "paper"

    def __post_init__(self) -> None:
        if self.sides not in ("both", "left", "right") or self.init not in ("paper", "identity"):
            raise ValueError(
                f"rlrr needs sides both, left or right and init paper or identity,"
                f" not sides={self.sides!r} init={self.init!r}"
            )

    @property
    def identity(self) -> bool:
        """Whether the method promises that training starts exactly at the backbone."""
        return self.init == "identity"

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft vectors on every map, and a scale and shift on norms."""
        staged = len(sites.stages) > 1
        blocks_end = max((i for i, s in enumerate(sites) if s.role is Role.BLOCK), default=-1)
        maps = need(sites.of(*RESCALED), "rlrr", "a linear map or a convolution")
        edits: list[Edit] = []
        for i, s in enumerate(sites):
            inside = not staged or s.depth >= 0 or i > blocks_end
            normed = s.role is Role.NORM and s.affine and inside
            if normed or s.depthwise or (s.role is Role.STEM and not staged):
                edits.append(Swap(s, partial(ScaleShift, site=s, init=self.init)))
            elif s in maps:
                parts = 3 if s.role is Role.QKV and not staged else 1
                edits.append(Swap(s, partial(RLRRGraft, site=s, config=self, parts=parts)))
        return edits


class RLRRGraft(Graft):
    """`base(x) + s_r * (W (s_l * x)) + f`, W the backbone's own weight whatever `base` is."""

    positionwise = True

    unmergeable: ClassVar[str] = (
        "the map has no bias to take the shift; reduction_bias=False leaves it out"
    )

    def __init__(self, base: nn.Module, site: Site, config: RLRR, parts: int) -> None:
        super().__init__(base)
        if isinstance(base, Graft) and not config.residual:
            raise Unsupported(
                f"rlrr without residual replaces the map at {site.path}, on which another method"
                " stands; give rlrr first"
            )
        self.residual = config.residual
        # In a list, so that it is no submodule; while merging, `base` is folded already.
        self.frozen = [self.root]
        left, right = config.sides != "right", config.sides != "left"
        self.left = nn.ParameterList(
            _drawn(site.in_dim, False, config) for _ in range(left * parts)
        )
        self.right = _drawn(site.dim, True, config) if right else None
        between = site.role is Role.DOWN and site.layout is Layout.LAST
        shifted = "bias" in site.params or (between and config.reduction_bias)
        spread = 0.0 if config.residual or config.identity else 0.02
        self.shift = nn.Parameter(spread * torch.randn(site.dim)) if shifted else None

    @property
    def splits(self) -> bool:
        """Whether the base's output is part of the result."""
        return self.residual

    def forward(self, x: Tensor, *args: object, **options: object) -> Tensor:
        """Add the rescaled map and the shift to the base's output, or put them in its place."""
        if self.residual:
            return super().forward(x, *args, **options)
        root: Any = self.root
        return self._with_shift(x, self._rescaled(x), self._along(root.bias, x))

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the rescaled map and the shift to the base's output."""
        return self._with_shift(x, self._rescaled(x), y)

    def _with_shift(self, x: Tensor, update: Tensor, kept: Tensor | None) -> Tensor:
        y = update if kept is None else kept + update
        return y if self.shift is None else y + self._along(self.shift, x)

    def _rescaled(self, x: Tensor) -> Tensor:
        """Compute s_r * (W (s_l * x)), without the bias."""
        root: Any = self.root
        if isinstance(root, nn.Linear):
            weight, slabs = _weight(root)
            tensors = autocast((x, weight, self.right, *self.left.parameters()))
            if not torch.is_grad_enabled():
                x, weight, *vectors = tensors  # type: ignore[assignment]
                return _forward((), x, weight, *vectors, slabs=slabs).y  # type: ignore[arg-type]
            return saved(RESCALE, Exact(), *tensors, slabs=slabs)
        update: Tensor = root(x * self._along(self.left[0], x) if len(self.left) else x)
        if root.bias is not None:
            update = update - self._along(root.bias, x)
        return update if self.right is None else update * self._along(self.right, x)

    def _along(self, vector: Any, x: Tensor) -> Any:
        """Shape a vector to go along the channels of x."""
        return (
            vector if vector is None or isinstance(self.root, nn.Linear) else vector[:, None, None]
        )

    def merged(self) -> nn.Module | None:
        """Fold the rescaled weight and the shift in; None where no bias takes the shift."""
        frozen: Any = self.frozen[0]
        if self.shift is not None and frozen.bias is None:
            return None
        weight = frozen.weight
        factor = torch.ones_like(weight)
        if len(self.left):  # by part of a fused map, or by group of a convolution
            left = torch.cat(list(self.left)).unflatten(0, (-1, weight.shape[1]))
            left = left.repeat_interleave(len(weight) // len(left), 0)
            factor = factor * left.view(*left.shape, *[1] * (weight.ndim - 2))
        if self.right is not None:
            factor = factor * self.right.view(-1, *[1] * (weight.ndim - 1))
        delta = weight * (factor if self.residual else factor - 1)
        return fold(self.base, delta=delta, shift=self.shift)


def _weight(root: Any) -> tuple[Tensor, Slabs | None]:
    """Give a map's weight as it is kept, and how it lies in its bytes if it does."""
    return (root.packed, root.slabs) if isinstance(root, Frozen) else (root.weight, None)


def _drawn(length: int, right: bool, config: RLRR) -> nn.Parameter:
    """Draw s_l or s_r."""
    both = config.sides == "both"
    if not config.residual:
        return nn.Parameter(1 + 0.02 * (not config.identity) * torch.randn(length))
    if config.identity and (right or not both):
        return nn.Parameter(torch.zeros(length))
    bound = math.sqrt(6 / (1 if right and both else length))
    return nn.Parameter(torch.empty(length).uniform_(-bound, bound))


def _product(x: Tensor, weight: Tensor, left: tuple[Tensor, ...]) -> Tensor:
    """Compute W (s_l * x), the rows of W cut into as many parts as there are s_l."""
    if not left:
        return F.linear(x, weight)
    rows = weight.chunk(len(left))
    parts = [F.linear(x * s, w) for s, w in zip(left, rows, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _forward(
    needs: Needs,
    x: Tensor,
    weight: Tensor,
    right: Tensor | None,
    *left: Tensor,
    slabs: Slabs | None = None,
) -> Forward:
    y = _product(x, slabs.whole(weight, x.dtype) if slabs else weight.to(x.dtype), left)
    y = y if right is None else y * right
    return Forward(y, (Residue(x),) if any(needs[1:]) else (), (weight, right, *left))


def _backward(
    needs: Needs,
    residues: tuple[Tensor, ...],
    extras: Any,
    dy: Tensor,
    *,
    slabs: Slabs | None = None,
) -> Tensors:
    weight, right, left = extras[0], extras[1], extras[2:]
    weight = slabs.whole(weight, dy.dtype) if slabs else weight.to(dy.dtype)
    over, n = tuple(range(dy.ndim - 1)), len(left) or 1
    x = residues[0] if residues else None
    d_right = (dy * _product(x, weight, left)).sum(over) if needs[2] and x is not None else None
    dz = dy if right is None else dy * right
    dx: Any = None
    d_weight, d_left = [], []
    for i, (g, w) in enumerate(zip(dz.chunk(n, -1), weight.chunk(n), strict=True)):
        scaled = left[i] if left else torch.ones_like(w[0])
        back = g @ w
        if left:
            d_left.append((back * x).sum(over) if needs[3 + i] else None)
        if needs[0]:
            dx = back * scaled if dx is None else dx.addcmul_(back, scaled)
        if needs[1] and x is not None:
            d_weight.append(g.flatten(0, -2).mT @ (x * scaled).flatten(0, -2))
    return dx, torch.cat(d_weight) if needs[1] else None, d_right, *d_left


RESCALE = Op(_forward, _backward)
"""y = s_r * (W (s_l * x)) with as many s_l as W has parts; see `RLRR`. Residue: x.

    dz = s_r dy,  dx = s_l * (W^T dz),  ds_l = sum(x * W^T dz),  ds_r = sum(dy * W (s_l * x))

Saves:
    x if W or a vector wants a gradient; W and the vectors themselves are no copies.
"""

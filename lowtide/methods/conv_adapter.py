"""Conv-Adapter: a thin convolution beside the spatial one. Chen et al. 2022, arXiv:2208.07463."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_, zeros_

from ..core.graft import Graft
from ..core.linear_maps import parallel
from ..core.method import Edit, Method, Swap, Thaw, method, need
from ..core.site import Layout, Role, Site, Sites
from ..errors import Unsupported
from ..values import Width

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}
WINDOW_KERNEL = 7


@method
@dataclass(frozen=True)
class ConvAdapter(Method):
    """Add to each spatial map a grouped convolution, an activation and a 1x1 convolution.

        y = f(x) + alpha * (PW(phi(GConv_k(x)))),    GConv: C -> C / a, one filter per a channels

    f is the first convolution of each block with a kernel larger than 1, and such ones between
    stages: ConvNeXt's depthwise and downsampling ones, the 3x3 of a ResNet's bottleneck, the first
    3x3 of a basic block. GConv takes f's kernel, stride and padding. In a backbone of windows f is
    attention, and GConv a 7x7 convolution of each window, zeros around. alpha is per channel.
    Weights start truncated-normal with deviation 0.02 and biases at 0; beside attention both start
    as PyTorch draws them, U(+-1 / sqrt(fan-in)), as in the authors' code. alpha starts at 1.

    Parameters: `C k^2 + c C' + C' + c + C'` per place, with `c = C / a`, to C' channels.
    ConvNeXt-B with a = 16, 8, 4: 1,626,144, 2,324,672, 3,721,728. ResNet-50 with a = 8, 4: 199,192,
    356,848. Swin-B with a = 8: 1,487,584.

    Merge: none, phi stands between its convolutions.

    Saves:
        Its input, 1 u, and C / a channels before and after phi (ReLU: after only). alpha scales the
        1x1 weight, not its output, so it needs no map of its own, only that small weight again.

    Differs:
        The authors' code adds, in a ResNet's bottleneck, behind the norm and activation that follow
        f (in a basic block before them); here it is before them everywhere. It convolves the whole
        map where attention sees windows, and adds outside stochastic depth; here windows, and the
        images in them, stay apart. It takes ReLU as phi on ResNets and Kaiming-normal weights.

    Attributes:
        reduction: a.
        activation: phi.
        init: `paper` starts at the random values above; `identity` has PW at zero.
        norms: Train the norms' scales and shifts too, as the authors' code does where a norm's name
            says so, on ConvNeXt and Swin. A BatchNorm that trains takes out the bias of a PW
            before it.
    """

    learning_rate: ClassVar[float] = 0.005

    reduction: Width = 8
    activation: Literal["gelu", "relu"] = "gelu"
    init: Literal["paper", "identity"] = "paper"
    norms: bool = False

    def __post_init__(self) -> None:
        if self.reduction < 1 or self.activation not in ACTIVATIONS:
            raise ValueError(
                "conv_adapter needs reduction >= 1 and an activation from"
                f" {', '.join(ACTIVATIONS)}, not {self.reduction} and {self.activation!r}"
            )

    @property
    def identity(self) -> bool:
        """Whether the method promises that training starts exactly at the backbone."""
        return self.init == "identity"

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft an adapter beside each spatial map.

        Args:
            sites: Every site of the backbone.

        Returns:
            One edit per adapter, and one per norm where these train.

        Raises:
            Unsupported: Nothing mixes space locally, `reduction` does not divide a width, or a
                window is not square.
        """
        chosen = need(
            Sites((*_convolutions(sites), *_windows(sites))),
            "conv_adapter",
            "blocks that convolve with a kernel larger than 1 or attend in windows",
        )
        for s in chosen:
            if s.in_dim % self.reduction:
                raise Unsupported(
                    f"conv_adapter makes one filter per {self.reduction} channels, and {s.path} has"
                    f" {s.in_dim}; choose a reduction that divides them"
                )
            flat = s.role is Role.ATTN and len(s.in_shape) == 3
            if flat and isqrt(s.in_shape[1]) ** 2 != s.in_shape[1]:
                raise Unsupported(
                    f"conv_adapter needs square windows; {s.path} has {s.in_shape[1]} positions"
                )
        edits: list[Edit] = []
        edits += [Swap(s, partial(ConvAdapterGraft, site=s, config=self)) for s in chosen]
        if self.norms:
            edits += [Thaw(s, s.params) for s in sites.of(Role.NORM) if s.params]
        return edits


def _convolutions(sites: Sites) -> Sites:
    spatial = sites.where(lambda s: s.kernel != (1, 1))
    first = {s.depth: s for s in reversed(spatial.of(Role.CONV)) if s.depth >= 0}
    return spatial.where(lambda s: first.get(s.depth) is s or (s.role is Role.DOWN and s.depth < 0))


def _windows(sites: Sites) -> Sites:
    """Attention in blocks whose map is a grid (B, H, W, C): it is given windows, flat or square."""
    grids = sites.of(Role.BLOCK).where(lambda s: s.layout is Layout.LAST and len(s.in_shape) == 4)
    depths = {s.depth for s in grids}
    return sites.of(Role.ATTN).where(lambda s: s.depth in depths and s.layout is Layout.LAST)


class ConvAdapterGraft(Graft):
    """`base(x) + alpha * pointwise(phi(grouped(x)))`."""

    unmergeable: ClassVar[str] = "an activation stands between its convolutions"

    grouped: Any
    pointwise: Any

    def __init__(self, base: nn.Module, site: Site, config: ConvAdapter) -> None:
        super().__init__(base)
        c = site.in_dim // config.reduction
        self.windows = site.role is Role.ATTN
        self.grouped = (
            nn.Conv2d(site.in_dim, c, WINDOW_KERNEL, padding=WINDOW_KERNEL // 2, groups=c)
            if self.windows
            else parallel(self.root, c, groups=c, bias=True)
        )
        self.act = ACTIVATIONS[config.activation]()
        self.pointwise = nn.Conv2d(c, site.dim, 1)
        self.alpha = nn.Parameter(self.pointwise.weight.new_ones(site.dim))
        for conv in () if self.windows else (self.grouped, self.pointwise):
            trunc_normal_(conv.weight, std=0.02)
            zeros_(conv.bias)
        if config.identity:
            zeros_(self.pointwise.weight)
            zeros_(self.pointwise.bias)

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Run the adapter beside the base: `(B, C, H, W)`, `(B, N, C)` or `(B, h, w, C)`."""
        if self.windows:
            side = isqrt(x.shape[1])
            x = (x if x.ndim == 4 else x.unflatten(1, (side, side))).movedim(-1, 1)
        weight = self.alpha[:, None, None, None] * self.pointwise.weight
        update = F.conv2d(self.act(self.grouped(x)), weight, self.alpha * self.pointwise.bias)
        return y + (update.movedim(1, -1).reshape(y.shape) if self.windows else update)

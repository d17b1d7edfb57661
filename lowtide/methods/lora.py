"""LoRA: a low-rank update beside frozen linear maps. Hu et al. 2021, arXiv:2106.09685, eq. 3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.graft import Graft
from ..core.linear_maps import fold, low_rank, product
from ..core.method import Edit, Method, Swap, method, need
from ..core.parts import add_one_by_one, add_to_parts
from ..core.site import Role, Site, Sites
from ..values import Scale, Share, Width

PARTS = {"q": 0, "k": 1, "v": 2}


@method
@dataclass(frozen=True)
class LoRA(Method):
    """Add `s B A x` to `W x`, with `s = alpha / rank`.

        y = W x + (alpha / r) B A x,    A ~ Kaiming-uniform(a = sqrt(5)),  B = 0

    The paper's vision baselines adapt the query and value projections. A fused qkv map gets its own
    pair of factors for each part named in `parts`; of separate maps to queries, keys and values
    those named there are adapted. Other linear maps can be adapted by role, or all at once: a run
    that is told no method does so. A convolution is factored as one of the same kernel to `rank`
    channels and a 1x1 back.

    Parameters: `rank (in + out)` per pair of factors; ViT-B/16 at rank 8: 294,912 for q and v,
    1,327,104 for every linear map.

    Merge: exact, `W' = W + s B A`.

    Saves:
        The input of the adapted map once, and the `rank` channels between the factors.

    Attributes:
        rank: Inner width r.
        alpha: Scale of the update before division by the rank; 0 takes alpha = rank, so s = 1.
        roles: Which maps, by role: any of qkv proj fc1 fc2 conv down stem linear. Empty takes qkv,
            fused or separate; a backbone without attention gets every linear map, and one without
            these its convolutions.
        parts: Which parts of a fused qkv map, and which of separate ones.
        dropout: Probability of dropping an input of A.
        all_linear: Adapt every linear map of the blocks, with all parts of qkv, in place of `roles`
            and `parts`; a backbone without one gets its convolutions.
    """

    learning_rate: ClassVar[float] = 0.005

    rank: Width = 8
    alpha: Scale = 0.0
    roles: tuple[Role, ...] = ()
    parts: str = "qv"
    dropout: Share = 0.0
    all_linear: bool = False

    def __post_init__(self) -> None:
        if self.all_linear and self.roles:
            raise ValueError("lora takes roles or all_linear, not both")
        known = self.parts and set(self.parts) <= set(PARTS)
        if self.rank < 1 or not known or len(set(self.parts)) < len(self.parts):
            raise ValueError(
                f"lora needs rank >= 1 and parts made of q, k and v, each once,"
                f" not rank={self.rank} parts={self.parts!r}"
            )

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft factors on the chosen maps."""
        chosen = need(self._choose(sites), "lora", f"a site of role {self._wanted()}")
        return [Swap(s, partial(LoRAGraft, site=s, config=self)) for s in chosen]

    def _choose(self, sites: Sites) -> Sites:
        if self.roles:
            return self._of(sites, self.roles)
        others = (Role.FC1, Role.FC2, Role.LINEAR)
        first = (Role.QKV, Role.PROJ, *others) if self.all_linear else (Role.QKV,)
        return next(
            (found for r in (first, others, (Role.CONV,)) if (found := self._of(sites, r))), Sites()
        )

    @property
    def adapted(self) -> str:
        """Parts of a fused qkv map that get factors, and of separate maps those that do."""
        return "qkv" if self.all_linear else self.parts

    def _of(self, sites: Sites, roles: tuple[Role, ...]) -> Sites:
        """Keep the sites of some roles; a separate map of a wanted part counts as qkv."""
        separate = self.adapted if Role.QKV in roles else ""
        return sites.where(lambda s: s.role in roles or (s.part != "" and s.part in separate))

    def _wanted(self) -> str:
        return " or ".join(self.roles) if self.roles else "qkv, linear or conv"


class LoRAGraft(Graft):
    """`base(x) + s up(down(x))`, in feature form: no weight-sized tensor is made in training."""

    positionwise = True

    def __init__(self, base: nn.Module, site: Site, config: LoRA) -> None:
        super().__init__(base)
        self.scale = (config.alpha or config.rank) / config.rank
        self.drop = nn.Dropout(config.dropout)
        self.axis = site.layout.value
        fused = site.role is Role.QKV
        self.parts = sorted(PARTS[p] for p in config.adapted) if fused else [0]
        self.width = site.dim // (3 if fused else 1)
        pairs = [low_rank(self.root, config.rank, self.width) for _ in self.parts]
        self.down = nn.ModuleList(down for down, _ in pairs)
        self.up = nn.ModuleList(up for _, up in pairs)

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the update to the base's output."""
        updates = self._updates(x)
        return add_to_parts(y, *updates, parts=self.parts, axis=self.axis, scale=self.scale)

    def onto(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the update to an output of the base that nobody else reads."""
        updates = self._updates(x)
        return add_one_by_one(y, updates, parts=self.parts, axis=self.axis, scale=self.scale)

    def _updates(self, x: Tensor) -> Iterator[Tensor]:
        x = self.drop(x)
        return (up(down(x)) for down, up in zip(self.down, self.up, strict=True))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Write the update as one pair of factors, `s up(down(x))`.

        Returns:
            Weights shaped as peft has them: `down`, each part's below the other, and `up`, which
            for a fused map has a block per part. A grouped convolution's `down` reads all inputs,
            those outside each group by zeros.
        """
        down = torch.cat([_ungrouped(m) for m in self.down]).detach()
        if len(self.up) == 1 and self.width == len(self.root.get_parameter("weight")):
            return down, self.up[0].get_parameter("weight").detach()
        own = [m.get_parameter("weight").detach() for m in self.up]
        rank = own[0].shape[1]
        up = own[0].new_zeros(3 * self.width, len(down), *own[0].shape[2:])
        for n, (i, part) in enumerate(zip(self.parts, own, strict=True)):
            up[i * self.width : (i + 1) * self.width, n * rank : (n + 1) * rank] = part
        return down, up

    def merged(self) -> nn.Module | None:
        """Fold the product of the factors into the base's weight."""
        delta = torch.zeros_like(self.root.get_parameter("weight"))
        for i, down, up in zip(self.parts, self.down, self.up, strict=True):
            rows = slice(i * self.width, (i + 1) * self.width)
            delta[rows] = self.scale * product(down, up)
        return fold(self.base, delta=delta)


def _ungrouped(module: Any) -> Tensor:
    """Write the weight of a map over all inputs."""
    groups = getattr(module, "groups", 1)
    if groups == 1:
        return module.weight
    wide = module.weight.new_zeros(len(module.weight), module.in_channels, *module.weight.shape[2:])
    rows, columns = len(wide) // groups, module.in_channels // groups
    for g in range(groups):
        at = slice(g * rows, (g + 1) * rows)
        wide[at, g * columns : (g + 1) * columns] = module.weight[at]
    return wide

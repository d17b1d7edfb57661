"""Adapter: a bottleneck behind the MLP. Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer 2021."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from ..core.graft import Graft
from ..core.linear_maps import bottleneck
from ..core.method import Edit, Method, Swap, method, need
from ..core.site import Role, Site, Sites
from ..values import Share, Width

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
PLACES = {"mlp": (Role.MLP,), "both": (Role.ATTN, Role.MLP)}


@method
@dataclass(frozen=True)
class Adapter(Method):
    """Put a bottleneck with a shortcut behind each block's MLP, inside the residual branch.

        y = f(x),    out = y + W_up drop(phi(W_down y + b)) + b'

    f is the MLP; with `positions="both"` also attention, as Houlsby has it. The vision baselines
    follow Pfeiffer and take the MLP alone. W_down ~ Kaiming-uniform(a = sqrt(5)), the rest is zero.

    Parameters: `2 C r + r + C` per bottleneck; ViT-B/16 at rank 8: 156,768, at rank 12 (the C / 64
    of the VTAB tables' "0.27 M"): 230,544; both positions at rank 96: 3,559,680.

    Merge: none, phi stands between the maps.

    Saves:
        Its input, 1 u, and `rank` channels before and after phi (ReLU: after only).

    Differs:
        VPT's code starts both maps at zero, which leaves only b' with a gradient, for good; the
        numbers copied from it are those of a bias. NOAH's starts both at random. Where a backbone
        scales its branches (layer scale), the bottleneck stands before the scale.

    Attributes:
        rank: Width r between the maps.
        positions: Behind the MLP, or behind attention and the MLP.
        activation: phi.
        dropout: Probability of dropping a value after phi.
    """

    learning_rate: ClassVar[float] = 0.005

    rank: Width = 8
    positions: Literal["mlp", "both"] = "mlp"
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    dropout: Share = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("positions", self.positions, PLACES),
            ("activation", self.activation, ACTIVATIONS),
        ):
            if value not in known:
                raise ValueError(f"adapter needs {name} from {', '.join(known)}, not {value!r}")
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                "adapter needs rank >= 1 and a dropout in [0, 1), not"
                f" rank={self.rank} dropout={self.dropout}"
            )

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft a bottleneck at each position."""
        chosen = sites.of(*PLACES[self.positions])
        for role in PLACES[self.positions]:
            need(chosen.of(role), "adapter", f"sites of role {role}")
        return [Swap(s, partial(AdapterGraft, site=s, config=self)) for s in chosen]


class AdapterGraft(Graft):
    """`y + up(drop(phi(down(y))))` with `y = base(x)`."""

    unmergeable: ClassVar[str] = "an activation stands between its maps"

    def __init__(self, base: nn.Module, site: Site, config: Adapter) -> None:
        super().__init__(base)
        self.down, self.up = bottleneck(site.layout, site.dim, config.rank)
        self.act = ACTIVATIONS[config.activation]()
        self.drop = nn.Dropout(config.dropout)

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Run the bottleneck behind the base."""
        return y + self.up(self.drop(self.act(self.down(y))))

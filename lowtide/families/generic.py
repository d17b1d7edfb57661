"""The table for all other backbones: a module's role follows from its class.

LoRA, SSF, Bias, Full, Linear and compression need no more. Methods that ask for blocks refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.models.davit import DaVit
from torch import Tensor, nn

from ..core.site import Layout, Role
from ..errors import Unsupported
from .kinds import is_map, is_norm
from .table import Family


@dataclass(frozen=True)
class Generic(Family):
    """A family that tells a module's role from its class."""

    def role(self, path: str, module: nn.Module) -> Role | None:
        """Tell a module's role from its class."""
        if is_norm(module):
            return Role.NORM
        if is_map(module):
            return Role.LINEAR if isinstance(module, nn.Linear) else Role.CONV
        return Role.OTHER if module._parameters else None


def _stem(model: Any, x: Tensor) -> Tensor:
    if not hasattr(model, "forward_features"):
        raise Unsupported(
            f"nothing tells where {type(model).__name__} has its features: no table, and no"
            " forward_features as timm's models have"
        )
    return model.forward_features(x)


GENERIC = Generic(
    name="generic",
    classes=(),
    roles=(),
    layout=Layout.FIRST,
    stem=_stem,
    chain=lambda model: (),
    finish=lambda model, x: x,
    tiny=lambda: DaVit(
        depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4), window_size=4, num_classes=10
    ),
)

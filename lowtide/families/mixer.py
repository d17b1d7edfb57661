"""MLP-Mixer, ResMLP, gMLP and gMixer: timm's `MlpMixer` with any of its blocks.

Roles `mlp`, `fc1` and `fc2` mean the channel MLP. What mixes tokens acts on the transposed feature
map (B, C, N): its last axis is positions (or the hidden units of the token MLP), not channels. Such
a map is `linear`, the role that promises a matrix and says nothing of its axes; its container and
its activation have no role, so a method that asks for the channel MLP never meets them. gMLP's one
MLP per block is `mlp` although its gate mixes tokens halfway: it maps channels to channels.

ResMLP has no norms. The scales and shifts it has in their place normalise nothing and are `other`.
In MLP-Mixer every reader of the residual stream starts with a LayerNorm, which removes what a token
MLP's last bias adds to all channels of a position alike: that bias never gets a gradient but zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from timm.layers import GatedMlp
from timm.models.mlp_mixer import Affine, MlpMixer, SpatialGatingBlock
from torch import nn

from ..core.site import Layout, Role
from .table import Family

_BLOCK = r"blocks\.\d+"


@dataclass(frozen=True)
class Mixer(Family):
    """A family whose norms may be maps that do not normalise."""

    def role(self, path: str, module: nn.Module) -> Role | None:
        """Look a module up in the table; an `Affine` is `other` wherever it stands."""
        return Role.OTHER if type(module) is Affine else super().role(path, module)


def _tiny() -> nn.Module:
    model = MlpMixer(
        img_size=64,
        patch_size=16,
        num_blocks=3,
        embed_dim=32,
        mlp_ratio=4,
        block_layer=SpatialGatingBlock,
        mlp_layer=GatedMlp,
        num_classes=10,
    )
    model.pretrained_cfg = {"input_size": (3, 64, 64)}  # type: ignore[assignment]
    return model


FAMILY = Mixer(
    name="mixer",
    classes=("MlpMixer",),
    roles=(
        (r"stem\.proj", Role.STEM),
        (_BLOCK, Role.BLOCK),
        (rf"{_BLOCK}\.norm[12]?|{_BLOCK}\.mlp_channels\.gate\.norm|stem\.norm|norm", Role.NORM),
        (rf"{_BLOCK}\.mlp_tokens\.fc[12]|{_BLOCK}\.linear_tokens", Role.LINEAR),
        (rf"{_BLOCK}\.mlp_channels\.gate\.proj", Role.LINEAR),
        (rf"{_BLOCK}\.mlp_channels", Role.MLP),
        (rf"{_BLOCK}\.mlp_channels\.fc1", Role.FC1),
        (rf"{_BLOCK}\.mlp_channels\.act", Role.ACT),
        (rf"{_BLOCK}\.mlp_channels\.fc2", Role.FC2),
    ),
    layout=Layout.LAST,
    stem=lambda model, x: model.stem(x),
    chain=lambda model: tuple(f"blocks.{i}" for i in range(len(model.blocks))),
    finish=lambda model, x: model.norm(x),
    tiny=_tiny,
    last="norm",
)

"""ResNet, ResNeXt and their deep-stem and squeeze-and-excitation variants."""

from __future__ import annotations

from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from ..core.site import Layout, Role
from .table import Family

_BLOCK = r"layer\d+\.\d+"


def _stem(model: ResNet, x: Tensor) -> Tensor:
    return model.maxpool(model.act1(model.bn1(model.conv1(x))))


def _chain(model: nn.Module) -> tuple[str, ...]:
    return tuple(
        f"layer{i}.{j}" for i in range(1, 5) for j in range(len(getattr(model, f"layer{i}")))
    )


FAMILY = Family(
    name="resnet",
    classes=("ResNet",),
    roles=(
        (r"conv1(\.\d+)?", Role.STEM),
        (rf"{_BLOCK}\.downsample\.\d", Role.DOWN),
        (rf"bn1|conv1\.\d+|{_BLOCK}\.bn\d|{_BLOCK}\.downsample\.\d", Role.NORM),
        (_BLOCK, Role.BLOCK),
        (rf"{_BLOCK}\.conv\d", Role.CONV),
        (rf"{_BLOCK}\.act\d", Role.ACT),
    ),
    layout=Layout.FIRST,
    stem=_stem,
    chain=_chain,
    finish=lambda model, x: x,
    tiny=lambda: ResNet(
        BasicBlock,  # type: ignore[arg-type]
        (2, 2, 1, 1),
        channels=(24, 32, 32, 48),
        stem_width=8,
        num_classes=10,
    ),
)

"""RegNet X, Y, Z and V."""

from __future__ import annotations

from timm.models.regnet import RegNet, RegNetCfg
from torch import nn

from ..core.site import Layout, Role
from .table import Family

_BLOCK = r"s\d\.b\d+"


def _chain(model: nn.Module) -> tuple[str, ...]:
    stages = (f"s{i}" for i in range(1, 5))
    return tuple(f"{s}.{name}" for s in stages for name, _ in getattr(model, s).named_children())


FAMILY = Family(
    name="regnet",
    classes=("RegNet",),
    roles=(
        (r"stem\.conv", Role.STEM),
        (_BLOCK, Role.BLOCK),
        (rf"{_BLOCK}\.downsample\.conv", Role.DOWN),
        (rf"stem\..+|final_conv\..+|{_BLOCK}\..+", Role.NORM),
        (rf"final_conv\..+|{_BLOCK}\..+", Role.CONV),
    ),
    layout=Layout.FIRST,
    stem=lambda model, x: model.stem(x),
    chain=_chain,
    finish=lambda model, x: model.final_conv(x),
    tiny=lambda: RegNet(
        RegNetCfg(depth=6, w0=24, wa=8.0, wm=1.4, group_size=8, se_ratio=0.25, stem_width=16),
        num_classes=10,
    ),
)

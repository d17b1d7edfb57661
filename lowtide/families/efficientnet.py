"""EfficientNet, MobileNet 1 to 4 and what else timm builds of inverted residual blocks."""

from __future__ import annotations

from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor, nn

from ..core.site import Layout, Role
from .table import Family

_BLOCK = r"blocks\.\d+\.\d+"


def _finish(model: EfficientNet | MobileNetV3, x: Tensor) -> Tensor:
    # MobileNetV3 pools first, and has these steps in its head.
    return x if isinstance(model, MobileNetV3) else model.bn2(model.conv_head(x))


def _tiny() -> nn.Module:
    block = {"block_type": "ir", "dw_kernel_size": 3, "exp_kernel_size": 1, "pw_kernel_size": 1}
    block |= {"exp_ratio": 2.0, "se_ratio": 0.25, "stride": 1, "noskip": False, "act_layer": None}
    stages = [
        [{**block, "out_chs": channels, "stride": stride} for stride in strides]
        for channels, strides in ((24, (2, 1, 1)), (32, (2, 1)))
    ]
    return EfficientNet(stages, stem_size=24, num_features=48, num_classes=10)


FAMILY = Family(
    name="efficientnet",
    classes=(EfficientNet.__name__, MobileNetV3.__name__),
    roles=(
        (r"conv_stem", Role.STEM),
        (_BLOCK, Role.BLOCK),
        (rf"bn[12]|norm_head|{_BLOCK}\..+", Role.NORM),
        (rf"conv_head|{_BLOCK}\..+", Role.CONV),
    ),
    layout=Layout.FIRST,
    stem=lambda model, x: model.bn1(model.conv_stem(x)),
    chain=lambda model: tuple(
        f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))
    ),
    finish=_finish,
    tiny=_tiny,
)

"""ConvNeXt, versions 1 and 2."""

from __future__ import annotations

from typing import Any

from timm.models.convnext import ConvNeXt

from ..core.branches import Sum, Term
from ..core.site import Layout, Role
from .table import Family, staged

_BLOCK = r"stages\.\d+\.blocks\.\d+"


def _total(model: Any) -> Sum:
    """The last stage: its downsampling, then blocks that read it by a depthwise convolution."""
    stage = f"stages.{len(model.stages) - 1}"
    blocks = {f"{stage}.blocks.{i}": b for i, b in enumerate(model.stages[-1].blocks)}
    terms = [
        Term(f"{path}.mlp.fc2", None if block.gamma is None else (path, "gamma"))
        for path, block in blocks.items()
    ]
    readers = tuple(f"{path}.conv_dw" for path in blocks)
    return Sum("norm_pre", (Term(f"{stage}.downsample.1"), *terms), readers)


FAMILY = Family(
    name="convnext",
    classes=("ConvNeXt",),
    roles=(
        (r"stem\.\d+|stem\.conv\d", Role.STEM),
        (rf"{_BLOCK}\.norm|stem\.\d+|stem\.norm|stages\.\d+\.downsample\.0|norm_pre", Role.NORM),
        (_BLOCK, Role.BLOCK),
        (rf"{_BLOCK}\.conv_dw", Role.CONV),
        (rf"{_BLOCK}\.mlp", Role.MLP),
        (rf"{_BLOCK}\.mlp\.fc1", Role.FC1),
        (rf"{_BLOCK}\.mlp\.act", Role.ACT),
        (rf"{_BLOCK}\.mlp\.fc2", Role.FC2),
        (rf"stages\.\d+\.downsample\.1|{_BLOCK}\.shortcut\.conv", Role.DOWN),
    ),
    layout=Layout.FIRST,
    stem=lambda model, x: model.stem(x),
    chain=staged("stages"),
    finish=lambda model, x: model.norm_pre(x),
    tiny=lambda: ConvNeXt(depths=(1, 1, 2, 1), dims=(24, 32, 32, 48), num_classes=10),
    last="norm_pre",
    total=_total,
)

"""What detectors and segmenters keep for backward: MiB by policy, and by operation.

    python benchmarks/detectors.py                # all; or names, as mask_rcnn_swin segformer

Random weights, SSF on the backbone, everything else trains; two images of 256 pixels.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import transformers as hf
from torch import Tensor, nn
from torchvision.models import detection, segmentation
from torchvision.ops import FeaturePyramidNetwork

import lowtide
from lowtide.planning.trial import trial_of
from lowtide.tuning.left_out import LeftOutWarning

SIDE, MIB = 256, 2**20
SIZE = {"min_size": SIDE, "max_size": SIDE}
EMPTY: dict[str, Any] = {"weights": None, "weights_backbone": None}


class Pyramid(nn.Module):
    """Feature maps of a timm backbone, channels first, and a pyramid over them."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.net = timm.create_model(name, features_only=True, **options)
        self.neck = FeaturePyramidNetwork(self.net.feature_info.channels(), 256)
        self.out_channels, self.last = 256, "swin" in name

    def forward(self, x: Tensor) -> Any:
        """Give maps by name."""
        maps = [y.permute(0, 3, 1, 2) if self.last else y for y in self.net(x)]
        return self.neck({str(i): y for i, y in enumerate(maps)})


class Simple(nn.Module):
    """The simple pyramid of ViTDet (Li et al. 2022): four sizes of a plain ViT's last map."""

    def __init__(self) -> None:
        super().__init__()
        options = {"img_size": SIDE, "out_indices": (11,)}
        self.net = timm.create_model("vit_small_patch16_224", features_only=True, **options)
        width = self.net.feature_info.channels()[-1]
        twice = nn.ConvTranspose2d(width, width, 2, 2)
        four = nn.Sequential(nn.ConvTranspose2d(width, width, 2, 2), nn.GELU())
        self.sizes = nn.ModuleList([
            four.append(nn.ConvTranspose2d(width, width, 2, 2)),
            twice,
            nn.Identity(),
        ])
        self.sizes.append(nn.MaxPool2d(2))
        self.neck = nn.ModuleList(nn.Conv2d(width, 256, 1) for _ in self.sizes)
        self.out_channels = 256

    def forward(self, x: Tensor) -> Any:
        """Give maps by name."""
        (y,) = self.net(x)
        pairs = enumerate(zip(self.neck, self.sizes, strict=True))
        return {str(i): neck(size(y)) for i, (neck, size) in pairs}


def mask_rcnn(backbone: nn.Module) -> nn.Module:
    """Mask R-CNN on four maps of a backbone."""
    sides = tuple((s,) for s in (32, 64, 128, 256))
    anchors = detection.rpn.AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 4)
    return detection.MaskRCNN(backbone, 81, rpn_anchor_generator=anchors, **SIZE)


def uper_net() -> nn.Module:
    """UperNet on Swin-T."""
    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    backbone = hf.SwinConfig(image_size=SIDE, out_features=stages)
    config = hf.UperNetConfig(backbone_config=backbone, num_labels=150, auxiliary_in_channels=384)
    return hf.UperNetForSemanticSegmentation(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mask_rcnn_resnet50": lambda: detection.maskrcnn_resnet50_fpn(**EMPTY, **SIZE),
    "mask_rcnn_swin_tiny": lambda: mask_rcnn(
        Pyramid("swin_tiny_patch4_window7_224", img_size=SIDE)
    ),
    "mask_rcnn_convnext_tiny": lambda: mask_rcnn(Pyramid("convnext_tiny")),
    "mask_rcnn_vit_small": lambda: mask_rcnn(Simple()),
    "retina_net_resnet50": lambda: detection.retinanet_resnet50_fpn(**EMPTY, **SIZE),
    "rt_detr": lambda: hf.RTDetrForObjectDetection(hf.RTDetrConfig()),
    "uper_net_swin_tiny": uper_net,
    "fpn_resnet50": lambda: smp.FPN("resnet50", encoder_weights=None, classes=150),
    "segformer_b0": lambda: hf.SegformerForSemanticSegmentation(hf.SegformerConfig()),
    "deeplab_resnet50": lambda: segmentation.deeplabv3_resnet50(**EMPTY, num_classes=21),
}


def by_operation(loss: Tensor, own: set[int]) -> Counter[str]:
    """Sum the storages that the nodes of a graph hold, each for the first node that holds it."""
    found: Counter[str] = Counter()
    nodes, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        todo += [n for n, _ in node.next_functions]
        for t in held(node):
            key = t.untyped_storage()._cdata
            found[node.name()] += 0 if key in own else t.untyped_storage().nbytes()
            own.add(key)
    return found


def held(node: Any) -> list[Tensor]:
    """The tensors that a node of a graph holds."""
    names = [n for n in dir(node) if n.startswith("_saved_")]
    values = [getattr(node, n) for n in names]
    flat = [v for value in values for v in (value if isinstance(value, tuple | list) else [value])]
    return [v for v in flat if isinstance(v, Tensor)]


def measured(name: str, policy: str) -> tuple[float, Counter[str]]:
    """MiB saved after a forward; without a policy also which operation saved them."""
    torch.manual_seed(0)
    tuned = lowtide.apply(MODELS[name](), lowtide.METHODS["ssf"]()).train()
    lowtide.compress(tuned, policy)
    trial = trial_of(tuned.model, tuned.backbone, (SIDE, SIDE), 8)
    batch = trial.examples(2)
    assert trial.loss is not None
    meter = lowtide.Meter(tuned)
    with meter:
        alive = trial.loss(tuned, *batch)
        saved = meter.now.parts["saved"] / MIB
        del alive
    if policy != "exact":
        return saved, Counter()
    own = {t.untyped_storage()._cdata for t in (*tuned.parameters(), *tuned.buffers())}
    return saved, by_operation(trial.loss(tuned, *batch), own)


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore", LeftOutWarning)
    print("| model | exact | tight | what keeps most, exact |\n|---|---|---|---|")
    for name in sys.argv[1:] or MODELS:
        (exact, parts), (tight, _) = measured(name, "exact"), measured(name, "tight")
        most = ", ".join(
            f"{n.removesuffix('0').removesuffix('Backward')} {b / MIB:.0f}"
            for n, b in parts.most_common(5)
        )
        print(f"| {name} | {exact:.0f} | {tight:.0f} | {most} |", flush=True)


if __name__ == "__main__":
    main()

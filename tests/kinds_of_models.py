"""Small models whose backbone is a part, one of each kind, and a training step of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection, resnet18, segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

try:
    import transformers as hf
except ModuleNotFoundError:  # of the tools, and not promised
    hf = None

from lowtide.core.outputs import tensors

SIDE, CLASSES = 64, 3

VIT: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 16,
}
DETR: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 5,
    "num_labels": CLASSES,
}
RESNET: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}

PLAIN: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
SMALL: dict[str, Any] = {"img_size": SIDE, "depth": 2}
SWIN: dict[str, Any] = {"img_size": SIDE, "embed_dim": 24, "depths": (1, 1, 1, 1)}


def timm_features(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, features_only=True, **options)


def fpn(norm: Any = nn.BatchNorm2d) -> BackboneWithFPN:
    body = resnet18(norm_layer=norm)
    layers = {f"layer{i}": str(i) for i in (2, 3, 4)}
    return BackboneWithFPN(body, layers, [128, 256, 512], 16)


def mask_rcnn() -> nn.Module:
    return detection.MaskRCNN(
        fpn(FrozenBatchNorm2d),
        CLASSES,
        min_size=SIDE,
        max_size=SIDE,
        rpn_anchor_generator=detection.rpn.AnchorGenerator(
            ((16,), (32,), (48,), (64,)), ((0.5, 1.0, 2.0),) * 4
        ),
        box_roi_pool=None,
    )


class Pyramid(nn.Module):
    """A user's own neck on timm's feature maps, channels last as Swin gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = timm_features("swin_tiny_patch4_window7_224", **SWIN)()
        self.neck = FeaturePyramidNetwork(self.net.feature_info.channels(), 16)
        self.out_channels = 16

    def forward(self, x: Tensor) -> Any:
        maps = {str(i): y.permute(0, 3, 1, 2) for i, y in enumerate(self.net(x))}
        return self.neck(maps)


def rcnn_swin() -> nn.Module:
    return detection.FasterRCNN(
        Pyramid(),
        CLASSES,
        min_size=SIDE,
        max_size=SIDE,
        rpn_anchor_generator=detection.rpn.AnchorGenerator(
            ((16,), (32,), (48,), (64,)), ((1.0,),) * 4
        ),
    )


def retina_net() -> nn.Module:
    return detection.RetinaNet(
        fpn(),
        CLASSES,
        min_size=SIDE,
        max_size=SIDE,
        anchor_generator=detection.rpn.AnchorGenerator(((16,), (24,), (32,), (48,)), ((1.0,),) * 4),
    )


def dino(**options: Any) -> hf.Dinov2Config:
    vit = {k: v for k, v in VIT.items() if k != "intermediate_size"}
    return hf.Dinov2Config(**vit, mlp_ratio=2, **options)


def swin_uper_net() -> nn.Module:
    backbone = hf.SwinConfig(
        image_size=SIDE,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = hf.UperNetConfig(
        backbone_config=backbone,
        hidden_size=8,
        num_labels=CLASSES,
        auxiliary_channels=8,
        auxiliary_in_channels=32,
    )
    return hf.UperNetForSemanticSegmentation(config)


def fcn() -> nn.Module:
    backbone = IntermediateLayerGetter(resnet18(), {"layer4": "out"})
    return segmentation.FCN(backbone, segmentation.fcn.FCNHead(512, CLASSES))


def segformer() -> nn.Module:
    config = hf.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=CLASSES,
    )
    return hf.SegformerForSemanticSegmentation(config)


def yolos() -> nn.Module:
    config = hf.YolosConfig(
        **{**VIT, "image_size": [SIDE, SIDE]},
        num_detection_tokens=5,
        num_labels=CLASSES,
        use_mid_position_embeddings=False,
    )
    return hf.YolosForObjectDetection(config)


def detr() -> nn.Module:
    backbone = hf.ResNetConfig(**RESNET, out_features=["stage4"])
    return hf.DetrForObjectDetection(
        hf.DetrConfig(**DETR, backbone_config=backbone, use_timm_backbone=False)
    )


def detr_timm() -> nn.Module:
    backbone = hf.TimmBackboneConfig(backbone="resnet18", use_pretrained_backbone=False)
    return hf.DetrForObjectDetection(hf.DetrConfig(**DETR, backbone_config=backbone))


def rt_detr() -> nn.Module:
    backbone = hf.RTDetrResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])
    config = hf.RTDetrConfig(
        **{k: v for k, v in DETR.items() if k in ("d_model", "num_queries", "num_labels")},
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[12, 16, 20],
        decoder_in_channels=[16, 16, 16],
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        num_denoising=0,
    )
    return hf.RTDetrForObjectDetection(config)


def needing(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Skip the test where transformers is not installed."""

    def built() -> nn.Module:
        pytest.importorskip("transformers")
        return build()

    return built


Kind = tuple[str, str, Callable[[], nn.Module]]
OF_TRANSFORMERS: dict[str, Kind] = {
    "segformer": ("segformer", "generic", segformer),
    "uper_net": ("backbone", "generic", swin_uper_net),
    "yolos": ("vit", "generic", yolos),
    "detr": ("model.backbone.model", "generic", detr),
    "detr_timm": ("model.backbone.model", "resnet", detr_timm),
    "rt_detr": ("model.backbone.model", "generic", rt_detr),
    "dinov2": ("", "generic", lambda: hf.Dinov2Model(dino())),
    "dinov2_backbone": ("", "generic", lambda: hf.Dinov2Backbone(dino(out_indices=[1]))),
    "vit": ("", "generic", lambda: hf.ViTModel(hf.ViTConfig(**VIT))),
}
MODELS: dict[str, Kind] = {
    "timm_resnet": ("", "resnet", timm_features("resnet18")),
    "timm_convnext": ("", "convnext", timm_features("convnext_atto")),
    "timm_swin": ("", "swin", timm_features("swin_tiny_patch4_window7_224", **SWIN)),
    "timm_vit": ("", "vit", timm_features("vit_tiny_patch16_224", **SMALL, out_indices=(0,))),
    "timm_efficientnet": ("", "efficientnet", timm_features("efficientnet_b0")),
    "timm_headless": (
        "",
        "vit",
        lambda: timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=0),
    ),
    "mask_rcnn": ("backbone.body", "generic", mask_rcnn),
    "rcnn_swin": ("backbone.net", "swin", rcnn_swin),
    "retina_net": ("backbone.body", "generic", retina_net),
    "ssd": (
        "backbone.features",
        "generic",
        lambda: detection.ssdlite320_mobilenet_v3_large(**PLAIN),
    ),
    "fcn": ("backbone", "generic", fcn),
    "lraspp": ("backbone", "generic", lambda: segmentation.lraspp_mobilenet_v3_large(**PLAIN)),
    "smp_own": (
        "encoder",
        "generic",
        lambda: smp.Unet("resnet18", encoder_weights=None, classes=CLASSES),
    ),
    "smp_timm": (
        "encoder",
        "convnext",
        lambda: smp.FPN("tu-convnext_atto", encoder_weights=None, classes=CLASSES),
    ),
    "smp_mit": ("encoder", "generic", lambda: smp.Segformer("mit_b0", encoder_weights=None)),
    "smp_padded": ("encoder", "generic", lambda: smp.Unet("efficientnet-b0", encoder_weights=None)),
    **{
        kind: (path, family, needing(made))
        for kind, (path, family, made) in OF_TRANSFORMERS.items()
    },
}
"""By name: path of the backbone, its family, and how the model is built."""


def loss(model: Any, kind: str, images: Tensor) -> Tensor:
    """A training loss of such a model, with targets where it takes some."""
    if kind in ("mask_rcnn", "rcnn_swin", "retina_net", "ssd"):
        return torch.stack(list(model(list(images), targets(len(images))).values())).sum()
    if kind in ("yolos", "detr", "detr_timm", "rt_detr"):
        labels = [
            {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]])}
            for _ in images
        ]
        return model(pixel_values=images, labels=labels).loss
    if kind in ("segformer", "uper_net"):
        labels = torch.ones(len(images), SIDE, SIDE, dtype=torch.long)
        return model(pixel_values=images, labels=labels).loss
    if kind in ("fcn", "lraspp"):
        labels = torch.ones(len(images), SIDE, SIDE, dtype=torch.long)
        return F.cross_entropy(model(images)["out"], labels)
    return torch.stack([y.square().mean() for y in tensors(model(images))]).sum()


def targets(count: int) -> list[dict[str, Tensor]]:
    """A box for each image, as torchvision's detectors want it."""
    masks = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    masks[:, 10:40, 10:40] = 1
    box = torch.tensor([[10.0, 10, 40, 40]])
    return [{"boxes": box, "labels": torch.tensor([1]), "masks": masks} for _ in range(count)]

"""Generated images of squares and discs in COCO's format, and small backbones for them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

CLASSES = ("square", "disc")
BODIES: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(
        img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=3
    ),
    "swin": lambda: SwinTransformer(
        img_size=64, window_size=2, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    "convnext": lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    "resnet": lambda: ResNet(
        BasicBlock, (1, 1, 1, 1), channels=(8, 8, 16, 16), stem_width=8, zero_init_last=False
    ),
}


def body(kind: str) -> nn.Module:
    """A backbone for images of 64 pixels."""
    model = BODIES[kind]()
    model.pretrained_cfg = {"input_size": (3, 64, 64), **getattr(model, "pretrained_cfg", {})}
    model.pretrained_cfg["input_size"] = (3, 64, 64)
    return model


def write_shapes(folder: Path, train: int = 8, val: int = 2, test: int = 3) -> Path:
    """Write a data set: bright squares and discs on dark noise, images of several sizes."""
    random = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train", train), ("val", val), ("test", test)):
        (folder / split).mkdir()
        content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        }
        for number in range(count):
            width, height = 40 + 8 * (number % 3), 48
            pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            name = f"{number}.png"
            content["images"].append({
                "id": number,
                "file_name": name,
                "width": width,
                "height": height,
            })
            for kind in range(2):
                _add(content, image, random, number, kind)
            image.save(folder / split / name)
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


def _add(content: Any, image: Image.Image, random: Any, number: int, kind: int) -> None:
    side = int(random.integers(12, 18))
    x = int(random.integers(0, image.width - side))
    y = kind * 24 + int(random.integers(0, 24 - side))
    if kind == 0:
        ring = [x, y, x + side, y, x + side, y + side, x, y + side]
        colour = (230, 40, 40)
    else:
        turns = [2 * math.pi * i / 24 for i in range(24)]
        half = side / 2
        ring = [
            v for t in turns for v in (x + half + half * math.cos(t), y + half + half * math.sin(t))
        ]
        colour = (40, 230, 40)
    ImageDraw.Draw(image).polygon(ring, fill=colour)
    content["annotations"].append({
        "id": len(content["annotations"]) + 1,
        "image_id": number,
        "category_id": kind + 1,
        "bbox": [x, y, side, side],
        "area": side * side,
        "iscrowd": 0,
        "segmentation": [ring],
    })

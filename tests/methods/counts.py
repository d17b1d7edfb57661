"""What a method trains on a real backbone, counted on the meta device with 100 classes."""

from __future__ import annotations

import copy
from functools import cache

import timm
from torch import nn

import lowtide
from lowtide import versions
from lowtide.core.method import Method
from lowtide.tuning.tuned import Tuned

CLASSES = 100
WIDTH = {"vit": 768, "swin": 1024, "convnext": 1024}
NAMES = {
    "vit": "vit_base_patch16_224",
    "swin": "swin_base_patch4_window7_224",
    "convnext": "convnext_base",
}


@cache
def made(backbone: str) -> nn.Module:
    with versions.on_meta():
        return timm.create_model(NAMES.get(backbone, backbone), num_classes=CLASSES)


def on_meta(backbone: str, *methods: Method) -> Tuned:
    with versions.on_meta():
        return lowtide.apply(copy.deepcopy(made(backbone)), *methods)


def trained(backbone: str, *methods: Method) -> int:
    """Trained parameters without the classifier of the backbone's own features."""
    head = (WIDTH.get(backbone, 2048) + 1) * CLASSES
    return on_meta(backbone, *methods).trainable_counts()[0] - head

"""Folders as finished runs leave them, without the training."""

from __future__ import annotations

from pathlib import Path

import torch
from nets import stir

import lowtide
from lowtide.data.preprocessing import Preprocessing

MODEL = "vit_micro_patch4_32"


def run_folder(
    folder: Path, method: str = "lora", classes: int = 3, seed: int = 0, backbone_seed: int = 0
) -> Path:
    """Save a stirred adapter on random weights, with what `lowtide train` says of it."""
    torch.manual_seed(backbone_seed)
    backbone = lowtide.create(MODEL, pretrained=False)
    preprocessing = Preprocessing.of(backbone)
    tuned = lowtide.Tuned(backbone)
    torch.manual_seed(seed)
    tuned.add_adapter("a", lowtide.METHODS[method](), num_classes=classes)
    tuned.set_adapter("a")
    stir(tuned)
    tuned.save_pretrained(
        folder,
        backbone={
            "name": MODEL,
            "checkpoint": None,
            "pretrained": False,
            "image_size": None,
            "seed": backbone_seed,
        },
        preprocessing=preprocessing.to_dict(),
        augment="none",
        classes=[f"class{i}" for i in range(classes)],
    )
    return folder

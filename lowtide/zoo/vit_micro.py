"""A small ViT for 32-pixel images, registered with timm, its weights in the package.

An ordinary timm `VisionTransformer` after Dosovitskiy et al., https://arxiv.org/abs/2010.11929,
with the sizes of ViT-Tiny at half the depth. Features are the mean over the patch tokens instead
of a class token (Beyer et al., https://arxiv.org/abs/2205.01580, section 3), which learns faster
from few images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import (
    VisionTransformer,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from timm.models.vision_transformer import checkpoint_filter_fn

default_cfgs = generate_default_cfgs({
    "vit_micro_patch4_32": {
        "file": str(Path(__file__).with_name("vit_micro_patch4_32.safetensors")),
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "num_classes": 100,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "description": "Trained from scratch on 24,000 images of CIFAR-100.",
    }
})


@register_model
def vit_micro_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build ViT-Micro/4: 64 tokens of width 192, depth 6, 3 heads, 2.7 million parameters.

    Args:
        pretrained: Load the weights in the package.
        **kwargs: Passed on to `timm.models.VisionTransformer`.

    Returns:
        The model. x: (B, 3, 32, 32) -> logits: (B, num_classes).
    """
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3}
    pooling = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    return build_model_with_cfg(
        VisionTransformer,
        "vit_micro_patch4_32",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,  # another img_size resamples positions
        **{**sizes, **pooling, **kwargs},
    )

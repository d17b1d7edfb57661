"""Make the backbone a user names, from timm's registry and a weights file."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import DropPath, PatchEmbed
from torch import nn

from .. import zoo as zoo
from ..errors import InputError, LowtideError, UnknownName
from ..families import family_of, image_shape, measure, reset
from ..memory.frozen_dtype import FrozenDtype
from ..paths import located
from ..values import Share, Side, read
from .fingerprint import ORIGINAL, fingerprint
from .weights import Unfilled, Weights, forget_numbers, load_weights, pack_backbone


def create(
    name: str,
    *,
    checkpoint: Path | None = None,
    pretrained: bool = True,
    image_size: int | None = None,
    drop_path: float = 0.0,
    frozen_dtype: FrozenDtype = "fp32",
) -> nn.Module:
    """Make a timm backbone with its pre-trained weights and its own classifier.

    Args:
        name: Any name timm knows, lowtide's bundled `vit_micro_patch4_32` among them.
        checkpoint: A safetensors file with timm's keys, instead of timm's own weights. They may all
            stand under one name, such as `model.`, and under those of wrappers.
        pretrained: Whether to take timm's own weights where no file is given.
        image_size: Side of the square input, where it is not that of the weights.
        drop_path: Stochastic depth rate of its blocks, trained or frozen; 0 switches it off, where
            timm's own default for some families (Swin) is 0.1.
        frozen_dtype: What to keep frozen weights in, see `set_frozen_dtype`. Those of a file are
            packed module by module as they are read: the model is never wide as a whole.

    Returns:
        The backbone; frozen where `frozen_dtype` is given.

    Raises:
        UnknownName: timm has no such model, or `frozen_dtype` is none.
        InputError: The file or an option does not fit the model.
        LowtideError: timm's weights cannot be had here.
    """
    name, size = read("model", str, name), read("image_size", Side | None, image_size)
    drop_path = read("drop_path", Share, drop_path)
    frozen_dtype = read("frozen_dtype", FrozenDtype, frozen_dtype)
    if not timm.is_model(name):
        raise UnknownName("model", name, timm.list_models())
    packs = frozen_dtype != "fp32"
    with Unfilled() if packs and checkpoint else nullcontext():
        model = _created(name, pretrained and checkpoint is None, drop_path)
    weights = None if checkpoint is None else Weights(located(checkpoint), name, model)
    if weights is not None:
        if packs:
            _pack_unfilled(model, weights, frozen_dtype)
        load_weights(model, weights)
    if size is not None and image_shape(model)[1:] != (size, size):
        _resize(model, name, size)
    if packs and weights is None:
        pack_backbone(model, frozen_dtype)
    elif packs and weights is not None:
        model.__dict__[ORIGINAL] = fingerprint(model, read=weights.read)
    return model


def _created(name: str, pretrained: bool, drop_path: float) -> nn.Module:
    options: Any = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as e:
        raise InputError(f"{name} has no option drop_path: {e}") from e
    except (OSError, RuntimeError) as e:  # the hub is out of reach, or holds none
        reason = str(e).splitlines()[0]
        raise LowtideError(
            f"cannot get the pre-trained weights of {name} ({reason}); give --checkpoint FILE,"
            " or --pretrained false for random weights"
        ) from e
    for module in model.modules() if not drop_path else ():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return model


def _pack_unfilled(model: Any, weights: Weights, dtype: FrozenDtype) -> None:
    """Make place for the bytes of weights that are still to be read."""
    if not weights.classifies:
        reset(model, model.num_classes, "own")
    forget_numbers(model)
    pack_backbone(model, dtype)


def _resize(model: nn.Module, name: str, size: int) -> None:
    """Give the backbone another input size where it can take one."""
    _refuse_cut_patches(model, name, size)
    before, trains = image_shape(model), {n: p.requires_grad for n, p in model.named_parameters()}
    cfg = dict(getattr(model, "pretrained_cfg", None) or {})
    try:
        stem: Any = getattr(model, "patch_embed", None)
        if hasattr(model, "set_input_size"):
            model.set_input_size((size, size))  # type: ignore[operator]
        elif not getattr(stem, "strict_img_size", True) and hasattr(stem, "set_input_size"):
            stem.set_input_size((size, size))  # SAM resamples its positions in each forward
        model.pretrained_cfg = cfg | {"input_size": (before[0], size, size)}  # type: ignore[assignment]
        with torch.no_grad():
            measure(model, family_of(model))
        if image_shape(model)[1:] != (size, size):
            raise ValueError("its stem accepts only the image size it was built for")
    except (AssertionError, RuntimeError, ValueError) as e:
        raise InputError(
            f"{name} takes {before[1]} x {before[2]} images and cannot be given {size}"
        ) from e
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(trains[path])  # older versions of timm make positions anew


def _refuse_cut_patches(model: nn.Module, name: str, size: int) -> None:
    """Refuse a size whose last rows and columns no patch would cover."""
    for embed in (m for m in model.modules() if isinstance(m, PatchEmbed)):
        for patch in embed.patch_size:
            if size % patch and not embed.dynamic_img_pad:
                low = size - size % patch
                near = f"{low} or {low + patch}" if low else f"{patch}"
                raise InputError(
                    f"{name} cuts images into patches of {patch} pixels, and {size} is no multiple"
                    f" of that: give {near}"
                )

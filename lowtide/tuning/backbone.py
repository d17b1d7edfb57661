"""Make the backbone a user names, from timm's registry and a weights file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import DropPath, PatchEmbed
from torch import nn

from .. import zoo as zoo
from ..core.wrapped import unprefixed
from ..errors import InputError, LowtideError, UnknownName
from ..families import classifiers, family_of, image_shape, measure
from ..paths import located


def create(
    name: str,
    *,
    checkpoint: Path | None = None,
    pretrained: bool = True,
    image_size: int | None = None,
    drop_path: float = 0.0,
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

    Returns:
        The backbone.

    Raises:
        UnknownName: timm has no such model.
        InputError: The file or an option does not fit the model.
        LowtideError: timm's weights cannot be had here.
    """
    if not timm.is_model(name):
        raise UnknownName("model", name, timm.list_models())
    options: Any = {"drop_path_rate": drop_path} if drop_path else {}
    own = pretrained and checkpoint is None
    try:
        model = timm.create_model(name, pretrained=own, **options)
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
    if checkpoint is not None:
        _load(model, name, located(checkpoint))
    if image_size is not None and image_shape(model)[1:] != (image_size, image_size):
        _resize(model, name, image_size)
    return model


def _load(model: nn.Module, name: str, path: Path) -> None:
    if not path.is_file():
        near = sorted(path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
        raise InputError(f"no file {path}" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        state = load_file(path)
    except SafetensorError as e:
        raise InputError(
            f"{path} is no safetensors file ({e}); other formats can run code and are not read:"
            " convert with safetensors.torch.save_file"
        ) from e
    own = model.state_dict()
    state = unprefixed(state, own.keys())
    heads = tuple(f"{p}." for p in classifiers(model))
    for key in [k for k in own if k.startswith(heads)]:
        if key not in state or state[key].shape != own[key].shape:
            state[key] = own[key]  # another number of classes, or none: the head is made anew
    wrong = [k for k in state if k in own and state[k].shape != own[k].shape]
    if wrong:
        raise InputError(
            f"{path} does not fit {name}: {wrong[0]} is {tuple(state[wrong[0]].shape)} in the file"
            f" and {tuple(own[wrong[0]].shape)} in the model"
        )
    missing = sorted(own.keys() - state.keys())
    extra = sorted(k for k in state.keys() - own.keys() if not k.startswith(heads))
    if missing or extra:
        raise InputError(
            f"{path} does not fit {name}: {len(missing)} tensors missing {missing[:2]},"
            f" {len(extra)} unexpected {extra[:2]}{_nearest(missing, extra)}"
        )
    model.load_state_dict({k: v for k, v in state.items() if k in own})


def _nearest(missing: list[str], extra: list[str]) -> str:
    """Tell which name of the file is like one that the model lacks."""
    for key in missing[:10]:
        if near := difflib.get_close_matches(key, extra[:1000], n=1, cutoff=0.5):
            return f"; nearest to {key} is {near[0]}"
    return ""


def _resize(model: nn.Module, name: str, size: int) -> None:
    """Give the backbone another input size where it can take one."""
    _refuse_cut_patches(model, name, size)
    before = image_shape(model)
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

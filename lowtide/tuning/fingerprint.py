"""Which backbone an adapter belongs to: its name, and the hash of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..families import classifiers
from ..memory.frozen_dtype import PACKED, Frozen
from .adapter_config import AdapterConfig, Head

ORIGINAL = "_lowtide_original_sha256"
"""Attribute of a backbone whose weights were rounded: their hash before that."""


Read = Callable[[Iterable[str]], Mapping[str, Tensor]]
"""Reads tensors by their names in a model."""


def fingerprint(
    model: nn.Module, path: str | None = None, head: Head = "train", read: Read | None = None
) -> str:
    """Hash the parameters of a model that an adapter leaves unchanged.

    Args:
        model: The model; carries no adapter.
        path: Its backbone's path, where that is a part of it.
        head: Whether the rest trains, where the backbone is a part; what is frozen is hashed too.
        read: Reads the wide weights of a backbone that was packed as it was loaded.

    Returns:
        SHA-256 of its parameters and persistent buffers, in hexadecimal; of a backbone whose
        weights were rounded, as they were before.
    """
    if ORIGINAL in model.__dict__:
        return str(model.__dict__[ORIGINAL])
    left_out = tuple(f"{p}." for p in classifiers(model)) if path is None else ()
    kept = f"{path}." if path and head == "train" else ""
    packed = {f"{at}.{PACKED}": m for at, m in model.named_modules() if isinstance(m, Frozen)}
    state = {
        key.removesuffix(PACKED) + "weight" if key in packed else key: (packed.get(key), value)
        for key, value in model.state_dict().items()
    }
    digest = hashlib.sha256()
    for key, (module, value) in sorted(state.items(), key=lambda item: item[0]):
        if key.startswith(kept) and not key.startswith(left_out):
            if module is not None and read is not None:
                value = read([key])[key].to(module.slabs.dtype)
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def refuse_other_part(
    path: str | None, head: Head, config: AdapterConfig, folder: Path | str
) -> None:
    """Refuse an adapter that was trained on another part of the model."""
    if (path, head) != (config.backbone_path, config.head):
        raise InputError(
            f"{folder} was trained with {_said(config.backbone_path, config.head)}, and this model"
            f" was given {_said(path, head)}: apply with the same"
        )


def _said(path: str | None, head: Head) -> str:
    return "a classifier" if path is None else f"backbone={path!r} head={head!r}"


def refuse_other_base(
    have: str, model: nn.Module, config: AdapterConfig, folder: Path | str
) -> None:
    """Refuse an adapter that was trained on another backbone, or on other weights of this one."""
    want, on = config.base_model_sha256, config.base_model_name_or_path
    if have == want:
        return
    if on != (here := architecture(model)):
        raise InputError(f"{folder} was trained on {on}, and this backbone is {here}")
    raise InputError(
        f"{folder} was trained on {on} with weights {want[:12]}, and this backbone's weights are"
        f" {have[:12]}: load the same pre-trained weights first"
    )


def architecture(model: nn.Module) -> str:
    """Name a backbone: timm's name of it, else its class."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return str(cfg.get("architecture") or type(model).__name__)

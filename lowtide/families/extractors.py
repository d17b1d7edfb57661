"""Find the backbone inside a detector, a segmenter or a feature extractor.

A model either classifies, and is then its own backbone, or holds its backbone as a part that gives
feature maps. Libraries mark such parts by a class; no name of a model is asked for.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..core.wrapped import plain_kind
from ..errors import InputError, UnknownName

MARKS: dict[str, tuple[str, ...]] = {
    "timm.": ("FeatureDictNet", "FeatureHookNet", "FeatureGetterNet"),
    "torchvision.": ("IntermediateLayerGetter", "DualGraphModule"),
    "transformers.": ("BackboneMixin",),
    "segmentation_models_pytorch.": ("EncoderMixin", "TimmUniversalEncoder"),
}
"""By library: classes whose instances give feature maps of an image."""
INSIDE = {
    "SSDFeatureExtractorVGG": "features",
    "SSDLiteFeatureExtractorMobileNet": "features",
}
"""Torchvision's extractors that add untrained layers of their own: where the backbone is in them.
"""
REBUILT = ("FeatureDictNet", "FeatureHookNet")
"""timm's extractors that take a backbone apart and may name `layers.0` `layers_0`."""


def backbone_path(model: nn.Module) -> str | None:
    """Find the part of a model that gives feature maps of an image.

    Args:
        model: The model.

    Returns:
        Its path; empty where the model is nothing else; None for a model that classifies.

    Raises:
        InputError: There are several.
    """
    if _is_extractor(model):
        return ""
    if hasattr(model, "get_classifier"):  # timm: an extractor inside is a part of its stem
        headless = not getattr(model, "num_classes", 1)
        return "" if headless else None
    if "ForImageClassification" in plain_kind(model).__name__:
        return None
    found = list(_extractors(model))
    if len(found) > 1:
        raise InputError(
            f"{plain_kind(model).__name__} holds {len(found)} feature extractors"
            f" ({', '.join(found[:3])}): say which is the backbone, as backbone={found[0]!r}"
        )
    return found[0] if found else _by_library(model)


def part_at(model: nn.Module, path: str) -> nn.Module:
    """Look up the part that a caller names.

    Args:
        model: The model.
        path: Dotted path; empty for all of it.

    Returns:
        The part.

    Raises:
        UnknownName: The model has nothing there.
        InputError: It holds no parameters.
    """
    parts = dict(model.named_modules())
    if path not in parts:
        raise UnknownName("backbone", path, [p for p in parts if p])
    if next(parts[path].parameters(), None) is None:
        raise InputError(f"the backbone {path!r} of {plain_kind(model).__name__} has no parameters")
    return parts[path]


def holders(model: nn.Module, path: str) -> tuple[str, ...]:
    """Find the modules outside the backbone: neck, decoder, heads.

    Args:
        model: The model.
        path: Its backbone's path.

    Returns:
        Paths of every module outside the backbone that holds parameters of its own.
    """
    inside = f"{path}." if path else ""
    part = model.get_submodule(path)
    within = {id(p) for p in part.parameters()}
    return tuple(
        name
        for name, m in model.named_modules()
        if not f"{name}.".startswith(inside)
        and any(p is not None and id(p) not in within for p in m._parameters.values())
    )


def core(part: nn.Module) -> tuple[str, nn.Module]:
    """Find the module inside a wrapper: the one child that holds all parameters.

    Args:
        part: The backbone, as its library wraps it.

    Returns:
        Path of the backbone itself, with a dot behind it, and the backbone.
    """
    path = ""
    while not any(p is not None for p in part._parameters.values()):
        full = {n: c for n, c in part.named_children() if next(c.parameters(), None) is not None}
        if len(full) != 1 or hasattr(part, "pretrained_cfg") and not _wraps(part):
            break
        ((name, part),) = full.items()
        path += f"{name}."
    return path, part


def rebuilt(module: nn.Module) -> bool:
    """Say whether a module is a timm backbone taken apart, whose class is lost.

    Args:
        module: What `core` gave.

    Returns:
        Whether it is.
    """
    kind = plain_kind(module)
    named = kind.__module__.startswith("timm.models.") and kind.__name__.endswith("Features")
    return named or _named(module, "timm.", REBUILT)


def original(path: str) -> str:
    """Give a module's name in the backbone that it was taken from.

    Args:
        path: Its path in what `rebuilt` says is one.

    Returns:
        The path with the first name divided: `layers.0.blocks.1` for `layers_0.blocks.1`.
    """
    return re.sub(r"^([A-Za-z]\w*?)_(\d+)(?=\.|$)", r"\1.\2", path)


def _extractors(model: nn.Module) -> Iterator[str]:
    """Find extractors, outermost only."""
    last = "\0"
    for path, module in model.named_modules():
        if path.startswith(last):
            continue
        inner = INSIDE.get(plain_kind(module).__name__, "")
        if inner or _is_extractor(module):
            last = f"{path}."
            yield f"{path}.{inner}" if inner else path


def _is_extractor(module: nn.Module) -> bool:
    return _wraps(module) or (hasattr(module, "feature_info") and rebuilt(module))


def _wraps(module: nn.Module) -> bool:
    return any(_named(module, library, names) for library, names in MARKS.items())


def _named(module: nn.Module, library: str, names: tuple[str, ...]) -> bool:
    bases = plain_kind(module).__mro__
    return any(c.__name__ in names and c.__module__.startswith(library) for c in bases)


def _by_library(model: Any) -> str | None:
    """Find the backbone where only the whole model's class says that it has one."""
    if _named(model, "torchvision.models.", ("GeneralizedRCNN", "RetinaNet", "FCOS", "SSD")):
        return "backbone"
    if _named(model, "segmentation_models_pytorch.", ("SegmentationModel",)):
        return "encoder"
    if _named(model, "transformers.", ("PreTrainedModel",)):
        base = model.base_model
        takes = list(inspect.signature(base.forward).parameters)[:1] == ["pixel_values"]
        return next(path for path, m in model.named_modules() if m is (base if takes else model))
    return None

"""The first adapter of a model: of methods, or of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..core.method import Method, method_name
from ..core.wrapped import unwrapped
from ..errors import InputError
from ..families import HeadInit, image_shape, part_at, reset
from ..values import Count, read
from .adapter_config import AdapterConfig, Head
from .adapter_files import read_adapter
from .checks import (
    blame_methods,
    outputs_on_noise,
    refuse_changed_outputs,
    refuse_unfit,
    refuse_unreached,
    restored_on_error,
)
from .fingerprint import architecture, fingerprint, refuse_other_base
from .located import located_backbone
from .tuned import Tuned


def apply(
    model: nn.Module,
    *methods: Method,
    name: str = "default",
    num_classes: int | None = None,
    head_init: HeadInit = "trunc_normal",
    backbone: str | None = None,
    head: Head = "train",
) -> Tuned:
    """Freeze a backbone and put methods in place.

    The backbone may be a part of the model, as in a detector: methods change that part, and the
    rest (neck, decoder, heads) trains whole. It is found by itself where the library marks it: in
    torchvision's detectors and segmenters, segmentation_models_pytorch, transformers' image models,
    and what timm's `features_only` gives.

    Args:
        model: The model; changed in place. What `torch.compile` or a data-parallel wrapper put
            around it is left off: wrap the result instead.
        *methods: What trains, innermost first; the classifier always trains.
        name: Name of the adapter.
        num_classes: Classes of the new classifier; by default the backbone's own classifier stays.
        head_init: How a new classifier starts: `trunc_normal` with weights of deviation 0.02 and
            biases at zero, as DTL and SSF have it; `zero`, as RLRR and ARC have it, so that the
            first output is the same for all classes; `own`, as the backbone's library has it.
        backbone: Dotted path of the part that is the backbone, such as `backbone.body`; empty for a
            model that is a backbone without a classifier. By default it is looked for.
        head: Whether what is not the backbone trains (`train`) or stays as it is (`frozen`), where
            the backbone is a part.

    Returns:
        The tuned model; it takes what the model takes.

    Raises:
        InputError: The backbone has no classifier and `num_classes` is not given, or the model is
            tuned already, or the options do not fit it.
        Unsupported: A method cannot live on this backbone. Whatever is raised, the backbone is as
            it was.
    """
    num_classes = read("num_classes", Count | None, num_classes)
    refuse_unfit(model, methods)
    with restored_on_error(model):
        model = unwrapped(model)
        path = located_backbone(model, backbone, head, num_classes)
        if path is None:
            classes = getattr(model, "num_classes", num_classes)
            if num_classes not in (None, classes) and hasattr(model, "reset_classifier"):
                reset(model, num_classes, head_init)
        tuned = Tuned(model, path, head)
        if path is None and not tuned.heads:
            raise InputError(
                "the backbone has no classifier; give num_classes, or backbone='' to tune it as it"
                " is"
            )
        tuned.add_adapter(name, *methods, num_classes=num_classes, head_init=head_init)
        _put_in_checked(tuned, name, methods)
    return tuned


def _put_in_checked(tuned: Tuned, name: str, methods: tuple[Method, ...]) -> None:
    """Put the first adapter in place; refuse what would train nothing or begin elsewhere."""
    image = image_shape(tuned.backbone)
    whole = tuned.backbone_path is None
    before = outputs_on_noise(tuned, image, whole)
    with blame_methods(tuned.model, [method_name(type(m)) for m in methods]):
        tuned.set_adapter(name)
        refuse_unreached(tuned, image, whole)
        after = outputs_on_noise(tuned, image, whole)
    if all(m.identity for m in methods):
        refuse_changed_outputs(before, after)
    if not any(p.requires_grad for p in tuned.parameters()):
        raise InputError(
            f"{' + '.join(method_name(type(m)) for m in methods)} trains nothing here: the backbone"
            " has no classifier; give num_classes, or another method"
        )


def load(model: nn.Module, folder: Path | str, *, name: str = "default") -> Tuned:
    """Put a saved adapter on the backbone it was trained on.

    Args:
        model: The model, with the same pre-trained weights; changed in place.
        folder: What `save_pretrained` wrote to.
        name: Name for the adapter.

    Returns:
        The tuned model, in eval mode.

    Raises:
        InputError: The files are damaged, or the backbone is not the one recorded. The backbone is
            as it was.
    """
    content, state = read_adapter(Path(folder))
    config = AdapterConfig.of(content, folder)
    path, head = config.backbone_path, config.head
    with restored_on_error(model):
        model = unwrapped(model)
        if path is not None and architecture(model) == config.base_model_name_or_path:
            part_at(model, path)
        refuse_other_base(fingerprint(model, path, head), model, config, folder)
        classes = config.num_classes or None
        options: Any = {} if path is None else {"backbone": path, "head": head}
        tuned = apply(model, *config.methods, name=name, num_classes=classes, **options)
        tuned.load_adapter_state(state)
        tuned.adapters[name].frozen_dtype = config.frozen_dtype
    return tuned.eval()

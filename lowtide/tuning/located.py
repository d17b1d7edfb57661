"""Find the backbone inside a model, given by the caller or not."""

from __future__ import annotations

from typing import get_args

from torch import nn

from ..errors import InputError, UnknownName
from ..families import backbone_path, part_at
from .adapter_config import Head


def located_backbone(
    model: nn.Module, given: str | None, head: Head, num_classes: int | None
) -> str | None:
    """Decide whether a model is tuned as a classifier or by its backbone part.

    Args:
        model: The model.
        given: The path a caller gave, if any.
        head: What becomes of the rest.
        num_classes: Classes of a new classifier, if one is wanted.

    Returns:
        The backbone's path; None for a model that classifies, or shall.

    Raises:
        UnknownName: The model has no such path, or `head` is none of the two.
        InputError: The options do not go together.
    """
    if head not in get_args(Head):
        raise UnknownName("head", head, get_args(Head))
    path = backbone_path(model) if given is None else given
    if given is None and num_classes is not None and hasattr(model, "reset_classifier"):
        path = None  # a headless backbone of timm's is given a classifier
    if path is not None:
        part_at(model, path)
    if path is not None and num_classes is not None:
        raise InputError(
            f"num_classes makes a new classifier, and {type(model).__name__} is tuned by its"
            f" backbone {path!r}: build the model with heads for {num_classes} classes"
        )
    if path is None and head != "train":
        raise InputError(
            "head='frozen' is for a model whose backbone is a part; a classifier trains: give"
            " backbone=PATH"
        )
    return path

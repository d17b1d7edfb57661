"""Run the part of a model that training does not change once per image; train on its features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from timm.layers import ClassifierHead, DropPath, NormMlpClassifierHead
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.method import method_name
from ..errors import InputError
from ..families import classifiers, image_shape
from ..tuning.side_execution import FEATURE, STEM
from ..tuning.tuned import Tuned

POOLING = (ClassifierHead, NormMlpClassifierHead)
"""timm's heads that pool first; `fc` gives the logits."""
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)


def constant_outputs(tuned: Tuned, images: Tensor) -> dict[str, Tensor]:
    """Find the elements of the chain whose output for an image never changes in training.

    An element is constant if nothing that trains takes part in its output, no side network changes
    its input or output, and it draws no random numbers; found by running it, not declared.

    Args:
        tuned: The model.
        images: `(B, 3, H, W)`.

    Returns:
        The inputs of `StagedModel.forward_from` after the last of them: every output where side
        networks read along, else the last alone, or the classifier's input where all are constant.
        Empty where already the first block is not.
    """
    model, family = tuned.backbone, tuned.family
    chain = family.chain(model)
    inside = (*chain, *classifiers(model))
    outside = [m for p, m in model.named_modules() if not within(p, inside)]
    random = _RandomDraws()
    with random:
        x, context = family.stem(model, images), tuned.context()
    if x.requires_grad or random.drawn or _has_dropout(outside):
        return {}
    given = {STEM: x}
    states = dict.fromkeys(tuned.sides)
    for path in chain:
        element = _RecordingElement(tuned.run(path, context))
        y: Tensor = tuned.beside(path, element, states)(x)
        drops = _has_dropout(model.get_submodule(path).modules())
        if drops or y.requires_grad or y is not element.output or x is not element.input:
            break
        given[path] = x = y
    if len(given) == 1 and chain:
        return {}
    if tuned.sides:
        return given
    last = list(given)[-1]
    if last == (STEM, *chain)[-1] and _one_classifier(model):
        feature = tuned.feature(x)
        if not feature.requires_grad and isinstance(feature, Tensor):
            return {FEATURE: feature}
    return {last: given[last]}


def _one_classifier(model: nn.Module) -> bool:
    """Whether logits are what the classifier gives of the pooled features, and nothing else."""
    told, heads = getattr(model, "get_classifier", None), classifiers(model)
    if told is None or len(heads) != 1:
        return False
    head = told()
    return model.get_submodule(heads[0]) is (head.fc if isinstance(head, POOLING) else head)


def features(tuned: Tuned, names: Iterable[str], images: Tensor) -> dict[str, Tensor]:
    """Run the constant elements of the chain.

    Args:
        tuned: The model.
        names: The keys of what `constant_outputs` returned.
        images: `(B, 3, H, W)`.

    Returns:
        The outputs by path, as `constant_outputs` returns them.
    """
    x = tuned.family.stem(tuned.backbone, images)
    given, context = {STEM: x}, tuned.context()
    chain = tuned.family.chain(tuned.backbone)
    last = max((i for i, path in enumerate(chain, 1) if path in names), default=len(chain))
    for path in chain[:last]:
        given[path] = x = tuned.run(path, context)(x)
    if FEATURE in names:
        given[FEATURE] = tuned.feature(x)
    return {name: given[name] for name in names}


def trained_part(tuned: Tuned) -> tuple[FromFeatures, tuple[int]]:
    """Give the part of a model that a training step on cached features runs.

    Args:
        tuned: The model.

    Returns:
        That part, and how many numbers stand for an image.

    Raises:
        InputError: The method changes the backbone from its first layer on.
    """
    images = torch.zeros(2, *image_shape(tuned.backbone), device=device_of(tuned))
    training = tuned.training
    with torch.enable_grad():
        given = constant_outputs(tuned.train(), images)
    tuned.train(training)
    if not given:
        names = ", ".join(method_name(type(m)) for m in tuned.methods)
        raise InputError(
            f"cache_features: {names} changes the backbone from its first layer on, or drops"
            " out there; no feature stays the same"
        )
    shapes = {name: y.shape[1:] for name, y in given.items()}
    return FromFeatures(tuned, shapes), (sum(map(math.prod, shapes.values())),)


class FromFeatures(nn.Module):
    """A tuned model that takes rows of features for images."""

    def __init__(self, tuned: Tuned, shapes: Mapping[str, torch.Size]) -> None:
        super().__init__()
        self.tuned, self.shapes = tuned, shapes

    def forward(self, rows: Tensor) -> Tensor:
        """Classify images by their features.

        Args:
            rows: `(B, width)`.

        Returns:
            Logits `(B, K)`.
        """
        return self.tuned.forward_from(dict(self._unpacked(rows)))

    def _unpacked(self, rows: Tensor) -> Iterator[tuple[str, Tensor]]:
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        for (name, shape), part in zip(self.shapes.items(), rows.split(sizes, 1), strict=True):
            yield name, part.unflatten(1, shape)


class _RecordingElement:
    """An element of the chain that records its input and output."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner = inner
        self.input: Tensor | None = None
        self.output: Tensor | None = None

    def __call__(self, x: Tensor, *tokens: Tensor, **between: object) -> Any:
        if tokens or between:  # a prompt attends here, or an adapter stands inside
            return self.inner(x, *tokens, **between)
        self.input, self.output = x, self.inner(x)
        return self.output


class _RandomDraws(TorchDispatchMode):
    """Notes whether random numbers are drawn, on the meta device too."""

    drawn = False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        self.drawn |= torch.Tag.nondeterministic_seeded in func.tags and not _draws_nothing(
            {a.name: a.default_value for a in func._schema.arguments}
            | dict(zip((a.name for a in func._schema.arguments), args, strict=False))
            | kwargs
        )
        return func(*args, **kwargs)


def _draws_nothing(given: Mapping[str, object]) -> bool:
    """Whether a function that may draw draws nothing: not in training, or drops out with p = 0."""
    trains = given.get("train", given.get("training"))
    chance = given.get("dropout_p", given.get("p") if trains else None)
    return trains is False or chance == 0


def device_of(tuned: Tuned) -> torch.device:
    """Say where a model is.

    Args:
        tuned: The model.

    Returns:
        The device of its first parameter.
    """
    return next(tuned.parameters()).device


def within(path: str, chain: tuple[str, ...]) -> bool:
    """Say whether a path is one of several, or inside one.

    Args:
        path: Of a module.
        chain: Of modules.

    Returns:
        Whether it is.
    """
    return any(path == c or path.startswith(f"{c}.") for c in chain)


def _has_dropout(modules: Iterable[nn.Module]) -> bool:
    """Whether any of these drops out, or drops a path, in training."""
    return any(
        (isinstance(m, DROPOUTS) and m.p > 0)
        or (isinstance(m, DropPath) and (m.drop_prob or 0.0) > 0)
        for m in modules
    )

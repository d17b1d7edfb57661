"""The fields of an `adapter_config.json`, each checked before it is used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..core.method import Method, method_name
from ..errors import InputError, UnknownName, shown
from ..families import HeadInit
from ..memory.frozen_dtype import FrozenDtype
from ..values import Count, Seed, Side, hints, read
from .adapter_files import CONFIG, construct, read_config

MOST_METHODS = 16
WHOLE = "."
"""How a file names a backbone that is all of a model without a classifier."""
Head = Literal["train", "frozen"]
"""What becomes of the rest of a model whose backbone is a part."""


@dataclass(frozen=True)
class Origin:
    """How a run's backbone was made.

    Attributes:
        name: timm's name of it.
        checkpoint: The file of its weights, instead of timm's own.
        pretrained: Whether timm's own weights were taken where no file was given.
        image_size: Side of its input, where it was given one.
        seed: Of its random weights, and of the new classifier.
        head_init: How that classifier started; an earlier version did not say.
    """

    name: str
    checkpoint: str | None
    pretrained: bool
    image_size: Side | None
    seed: Seed
    head_init: HeadInit = "trunc_normal"


@dataclass(frozen=True)
class AdapterConfig:
    """The description of an adapter, known before its tensors are read.

    Attributes:
        methods: What trained, innermost first.
        num_classes: Classes of its classifier; 0 where the backbone is a part of a model.
        base_model_sha256: Hash of the backbone that it was trained on.
        base_model_name_or_path: Name of that backbone.
        frozen_dtype: What its frozen weights were kept in; an earlier version did not say.
        backbone_path: Path of the backbone, where it is a part of a model.
        head: Whether the rest of that model trained.
        backbone: How a run made it; this and what follows is None where a program saved it.
        preprocessing: How a run's images became inputs, as `Preprocessing.from_dict` takes it.
        augment: The run's augmentation.
        classes: Names of the classes, in the order of the logits.
        targets: What was learnt, as `lowtide.targets` says it; an earlier version did not say.
    """

    methods: tuple[Method, ...]
    num_classes: int
    base_model_sha256: str
    base_model_name_or_path: str
    frozen_dtype: FrozenDtype | None = None
    backbone_path: str | None = None
    head: Head = "train"
    backbone: Origin | None = None
    preprocessing: Mapping[str, object] | None = None
    augment: str | None = None
    classes: tuple[str, ...] | None = None
    targets: Mapping[str, object] | None = None

    @classmethod
    def of(cls, content: Mapping[str, object], folder: Path | str) -> AdapterConfig:
        """Check a file's content.

        Args:
            content: The parsed JSON; fields that are not listed here are left alone.
            folder: Where the file lies, for the message.

        Returns:
            What it says.

        Raises:
            InputError: A field is missing, of another type, or out of its bounds.
        """
        try:
            return cls._checked(content)
        except InputError as e:
            raise InputError(f"{Path(folder) / CONFIG} is damaged: {e}") from e

    @classmethod
    def _checked(cls, content: Mapping[str, object]) -> AdapterConfig:
        digest = _field(content, "base_model_sha256", str)
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise InputError(
                f"base_model_sha256 must be 64 hexadecimal digits, not {shown(digest)}"
            )
        path = read("backbone_path", str | None, content.get("backbone_path"))
        path = "" if path == WHOLE else path
        num_classes = _field(content, "num_classes", Count if path is None else Literal[0])
        return cls(
            methods=_methods(content.get("methods")),
            num_classes=num_classes,
            base_model_sha256=digest,
            base_model_name_or_path=_field(content, "base_model_name_or_path", str),
            frozen_dtype=read("frozen_dtype", FrozenDtype | None, content.get("frozen_dtype")),
            backbone_path=path,
            head=read("head", Head, content.get("head", "train")),
            **(_of_run(content, num_classes) if "backbone" in content else {}),
        )


def _field(content: Mapping[str, object], name: str, hint: object) -> Any:
    if name not in content:
        raise InputError(f"{name} is missing")
    return read(name, hint, content[name])


def _of_run(content: Mapping[str, object], num_classes: int) -> dict[str, Any]:
    """Check what a run keeps; a program may keep what it likes under these names."""
    return {
        "backbone": _origin(content["backbone"]),
        "preprocessing": _mapping("preprocessing", content.get("preprocessing")),
        "augment": _field(content, "augment", str),
        "classes": _classes(content.get("classes"), num_classes),
        "targets": _mapping("targets", content["targets"]) if "targets" in content else None,
    }


def _mapping(name: str, given: object) -> Mapping[str, object]:
    if not isinstance(given, dict):
        raise InputError(f"{name} must map names to values, not be {shown(given)}")
    return given


def _methods(given: object) -> tuple[Method, ...]:
    if not isinstance(given, list) or not 0 < len(given) <= MOST_METHODS:
        raise InputError(f"methods must be a list of methods, not {shown(given)}")
    methods = tuple(construct(description) for description in given)
    names = [method_name(type(m)) for m in methods]
    if twice := [n for n in names if names.count(n) > 1]:
        raise InputError(f"methods holds {twice[0]} twice")
    return methods


def _origin(given: object) -> Origin:
    content = _mapping("backbone", given)
    kinds = hints(Origin)
    for name in content:
        if name not in kinds:
            raise UnknownName("field of backbone", name, kinds)
    for f in fields(Origin):
        if f.name not in content and f.default is MISSING:
            raise InputError(f"backbone has no {f.name}")
    return Origin(**{n: read(f"backbone {n}", kinds[n], value) for n, value in content.items()})


def _classes(given: object, count: int) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise InputError(f"classes must be a list of names, not {shown(given)}")
    for name in given:
        read("a class", str, name)
    if len(given) != count:
        raise InputError(f"classes holds {len(given)} names and num_classes is {count}")
    if len(set(given)) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise InputError(f"classes holds {shown(twice)} twice")
    return tuple(given)


def unfit(folder: Path) -> str:
    """Say why a folder answers for no image as a whole.

    Args:
        folder: Of an adapter that names no classes or no pre-processing.

    Returns:
        The line.
    """
    if "dense" in read_config(folder):
        return (
            f"{folder} answers for pixels or objects, and this takes runs that answer for images:"
            " lowtide eval, predict, merge and report take it"
        )
    return (
        f"{folder} was not left by lowtide train: its {CONFIG} names no backbone, classes or"
        " pre-processing; load it in Python with lowtide.load"
    )

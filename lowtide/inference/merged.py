"""A merged run: a file of weights for timm, whose header says what its numbers mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from ..data import Preprocessing
from ..errors import InputError, UnknownName
from ..methods import METHODS
from ..targets import construct, describe
from ..training.devices import device_of
from ..tuning.adapter_files import read_metadata, read_tensors, write_tensors
from ..tuning.applying import apply
from ..tuning.finite import refuse_infinite
from ..versions import on_meta
from .evaluate import Trained

HEADER = "lowtide"


def write_merged(trained: Trained, path: Path) -> str:
    """Fold a run into its backbone and write the merged model.

    The header of the file holds, under `lowtide`, the model's name and options, the classes in the
    order of the logits, and the pre-processing, as JSON.

    Args:
        trained: The run; not to be used again.
        path: The file to write.

    Returns:
        The Python expression that loads it.
    """
    model = trained.tuned.merge_and_unload()
    state = model.state_dict()
    size = trained.preprocessing.size
    options = {"num_classes": len(trained.classes)}
    options |= _size_option(trained.name, len(trained.classes), size, state)
    header = {
        "model": trained.name,
        "options": options,
        "classes": list(trained.classes),
        "preprocessing": trained.preprocessing.to_dict(),
        "augment": trained.transform.augment,
        "targets": describe(trained.targets),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, state, {HEADER: json.dumps(header)})
    given = {**options, "checkpoint_path": str(path)}
    words = "".join(f", {name}={value!r}" for name, value in given.items())
    return f'timm.create_model("{trained.name}"{words})'


def open_merged(path: Path, *, device: str = "auto") -> Trained:
    """Load what `write_merged` wrote.

    Args:
        path: The file.
        device: `auto`, `cpu`, `cuda:1` and the like.

    Returns:
        The model and what its header says, ready for use.

    Raises:
        InputError: The file is damaged, or was not written by `write_merged`.
        UnknownName: It names a model that timm does not know.
    """
    where, state = device_of(device), read_tensors(path)
    refuse_infinite(path, state)
    try:
        header = json.loads(read_metadata(path)[HEADER])
        name, options = str(header["model"]), _known(header["options"])
        classes = tuple(map(str, header["classes"]))
        preprocessing = Preprocessing.from_dict(header["preprocessing"])
        transform = preprocessing.transform(train=False, augment=header["augment"])
        targets = construct(classes, header.get("targets"))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise InputError(
            f"{path} was not written by lowtide merge: its header names no model and no classes"
        ) from e
    if not timm.is_model(name):
        raise UnknownName("model", name, timm.list_models())
    if options["num_classes"] != len(classes) or len(set(classes)) != len(classes):
        raise InputError(f"{path} is damaged: {len(classes)} classes for {options['num_classes']}")
    if not _fits(_meta_model(name, options), state):
        raise InputError(f"{path} is damaged: its tensors are not those of {name}")
    model = timm.create_model(name, **options)
    model.load_state_dict(state)
    tuned = apply(model, METHODS["linear"]()).eval()
    return Trained(tuned.to(where), preprocessing, transform, classes, name, targets)


def _known(options: Mapping[str, object]) -> dict[str, Any]:
    """Take the options that `write_merged` writes, and no others."""
    made: dict[str, object] = {"num_classes": options["num_classes"]}
    if "img_size" in options:
        size = options["img_size"]
        made["img_size"] = tuple(size) if isinstance(size, list) else size
    for value in (made["num_classes"], *_sides(made.get("img_size", 1))):
        if type(value) is not int or not 1 <= value <= 1 << 16:
            raise TypeError
    return made


def _sides(size: Any) -> tuple[object, ...]:
    return size if isinstance(size, tuple) else (size,)


def _size_option(
    name: str, classes: int, size: tuple[int, int], state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Find out whether timm must be told the image size to make a model of these shapes."""
    told: dict[str, object] = {"img_size": size[0] if size[0] == size[1] else size}
    own = Preprocessing.of(_meta_model(name, {})).size
    for option in ({}, told) if own == size else (told, {}):
        try:
            model = _meta_model(name, {"num_classes": classes, **option})
        except TypeError:  # it takes images of any size
            continue
        if _fits(model, state):
            return option
    raise InputError(f"timm makes no {name} that takes {size[0]} x {size[1]} images: cannot merge")


def _meta_model(name: str, options: Mapping[str, Any]) -> nn.Module:
    with on_meta():
        return timm.create_model(name, **options)


def _fits(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    return shapes == {key: value.shape for key, value in state.items()}

"""Features of images: of every block of a model, and the input of its classifier."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.graft import find
from ..core.side import Block, Side
from ..core.site import Layout, Role
from ..core.wrapped import numbers_of
from ..data import Sample, loader
from ..errors import InputError, Unsupported
from ..inference.evaluate import Trained, backbone_of
from ..methods import METHODS
from ..tuning.applying import apply
from ..tuning.tuned import Tuned

Note = Callable[[str, Tensor], None]
NAME = "inside"


def untouched(trained: Trained, folder: Path, checkpoint: Path | None = None) -> Trained:
    """Make a run's backbone as it was pre-trained, to compare the tuned model with.

    Args:
        trained: The run.
        folder: Its folder.
        checkpoint: Where the backbone's weights are now, if not where they were.

    Returns:
        The backbone with the run's pre-processing; its classifier is untrained.
    """
    like = numbers_of(trained.tuned)
    tuned = apply(
        backbone_of(folder, checkpoint), METHODS["linear"](), num_classes=len(trained.classes)
    )
    return replace(trained, tuned=tuned.to(like).eval())


def block_features(
    trained: Trained, samples: Sequence[Sample], batch_size: int = 32
) -> dict[str, Tensor]:
    """Compute the mean over tokens, or positions, of every block's output.

    Blocks are the elements of the family's chain; tokens that a method adds are left out. Where no
    table describes the backbone, they are the modules timm lists in `feature_info`.

    Args:
        trained: The model.
        samples: The images.
        batch_size: Images per forward pass.

    Returns:
        Features (n, d) by path, in the order they are computed, in float32 on the CPU.

    Raises:
        Unsupported: The backbone has no table, and timm names no modules of it.
    """
    kept: dict[str, list[Tensor]] = {}
    backbone, family = trained.tuned.backbone, trained.tuned.family
    chained = bool(family.chain(backbone))
    last = family.layout is Layout.LAST if chained else _channels_last(backbone)

    def note(path: str, x: Tensor) -> None:
        x = x if last or x.ndim == 3 else x.movedim(1, -1)
        kept.setdefault(path, []).append(x.flatten(1, -2).mean(1).float().cpu())

    watch = _beside if chained else _hooked
    with watch(trained.tuned, note):
        _run(trained, samples, batch_size)
    if not kept:
        raise Unsupported(f"{trained.name} has no table, and timm lists no feature_info of it")
    return {path: torch.cat(parts) for path, parts in kept.items()}


def final_features(trained: Trained, samples: Sequence[Sample], batch_size: int = 32) -> Tensor:
    """Compute the input of the classifier.

    Args:
        trained: The model.
        samples: The images.
        batch_size: Images per forward pass.

    Returns:
        Features (n, d), in float32 on the CPU.
    """
    kept: list[Tensor] = []
    head = find(trained.tuned.backbone, trained.tuned.sites.of(Role.HEAD)[0].path)
    with head.register_forward_pre_hook(
        lambda module, args: kept.append(args[0].flatten(1).float().cpu())
    ):
        _run(trained, samples, batch_size)
    return torch.cat(kept)


class Reader(Side):
    """A side network that records every element's output, and changes nothing."""

    def __init__(self, note: Note) -> None:
        super().__init__()
        self.note = note

    def step(self, path: str, block: Block, x: Tensor, state: None) -> tuple[Tensor, None]:
        """Run one element of the chain, and note its output."""
        y = block(x)
        self.note(path, y)
        return y, None


@contextlib.contextmanager
def _beside(tuned: Tuned, note: Note) -> Iterator[None]:
    tuned.sides[NAME] = Reader(note)  # the last one stands around all others
    try:
        yield
    finally:
        del tuned.sides[NAME]


@contextlib.contextmanager
def _hooked(tuned: Tuned, note: Note) -> Iterator[None]:
    there = dict(tuned.backbone.named_modules())
    paths = [info["module"] for info in getattr(tuned.backbone, "feature_info", None) or ()]
    with contextlib.ExitStack() as hooks:
        for path in paths:
            if path in there:
                hook = partial(_pass_on, note, path)
                hooks.enter_context(there[path].register_forward_hook(hook))
        yield


def _pass_on(note: Note, path: str, module: nn.Module, args: Any, y: Any) -> None:
    note(path, y[0] if isinstance(y, tuple) else y)


def _channels_last(backbone: nn.Module) -> bool:
    """Whether timm says so of a backbone's feature maps; it says nothing of the usual layout."""
    return getattr(backbone, "output_fmt", "NCHW") == "NHWC"


@torch.no_grad()
def _run(trained: Trained, samples: Sequence[Sample], batch_size: int) -> None:
    if not samples:
        raise InputError("there are no images in this split")
    device = next(trained.tuned.parameters()).device
    for images, _ in loader(samples, trained.transform, batch_size, shuffle=False):
        trained.tuned(images.to(device))

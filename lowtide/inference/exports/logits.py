"""Shared by all graph formats: images to logits, the header's metadata, a check."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import LowtideError
from ...memory.compress import decompress
from ...tuning.tuned import merge, set_frozen_dtype
from ..evaluate import Trained

BATCHES = (2, 1, 3)
"""Images in the batch that a graph is made from, and in those that it is tried on besides."""
TOLERANCE = 1e-4
"""Largest difference between the logits of graph and run, over the largest logit or 1."""


class Logits(nn.Module):
    """A model that takes images and gives logits, whatever its own output looks like."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Classify.

        Args:
            images: Normalised, `(B, C, H, W)`.

        Returns:
            `(B, K)`.
        """
        return self.model(images)


def graph_of(trained: Trained) -> tuple[nn.Module, list[Tensor]]:
    """Make a plain model that answers as a run does, and images to try it on.

    Frozen weights in few bits are made wide, rounded as they are; what merges is merged, and grafts
    and side networks that do not merge stay.

    Args:
        trained: The run; not to be used again.

    Returns:
        The model in eval mode on the CPU, and batches of noise of `BATCHES` images.
    """
    tuned = trained.tuned.cpu().eval()
    set_frozen_dtype(tuned, "fp32")
    tuned.checkpointing = False
    plain, unfolded = merge(tuned)
    model = decompress(tuned) if unfolded else plain
    made = trained.preprocessing
    return Logits(model).eval().requires_grad_(False), noise(made.channels, made.size)


def noise(channels: int, size: Sequence[int]) -> list[Tensor]:
    """Draw images to make a graph from, and to try it on.

    Args:
        channels: Of an image.
        size: Its height and width.

    Returns:
        Batches of `BATCHES` images.
    """
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, channels, *size, generator=generator) for n in BATCHES]


def preparation(made: Mapping[str, object], augment: str) -> dict[str, object]:
    """Describe how images are pre-processed.

    Args:
        made: What `Preprocessing.to_dict` says.
        augment: What a run did to them.

    Returns:
        The same, with `crop_mode` `squash` and `crop_pct` 1 where the whole image is resized.
    """
    return {**made, **({} if augment == "crop" else {"crop_pct": 1.0, "crop_mode": "squash"})}


def metadata(trained: Trained) -> dict[str, str]:
    """Describe a graph's inputs and outputs, in strings as file headers hold them.

    Args:
        trained: The run.

    Returns:
        `model`, `lowtide`, and as JSON `classes` in the order of the logits and `preprocessing`:
        size (height, width), mean and std of pixels in [0, 1], interpolation, crop_pct and
        crop_mode as timm names them. With crop_mode `squash` and crop_pct 1 the whole image is
        resized.
    """
    made = preparation(trained.preprocessing.to_dict(), trained.transform.augment)
    return {
        "model": trained.name,
        "lowtide": version("lowtide"),
        "classes": json.dumps(list(trained.classes)),
        "preprocessing": json.dumps(made),
    }


@torch.no_grad()
def refuse_other_answers(
    model: nn.Module, batches: list[Tensor], answer: Callable[[Tensor], object], what: str
) -> None:
    """Refuse a written graph whose outputs differ from those of its model.

    Args:
        model: What it was made from.
        batches: Images.
        answer: Runs the graph.
        what: The graph's format, for the message.

    Raises:
        LowtideError: It fails, or answers otherwise.
    """
    for images in batches:
        wanted = model(images)
        try:
            answered = answer(images)
        except Exception as e:
            raise LowtideError(
                f"the {what} graph fails on {len(images)} images: {str(e).splitlines()[0]}"
            ) from e
        for want, have in zip(_each(wanted), _each(answered), strict=True):
            error = float(
                (torch.as_tensor(have) - want).abs().max() / want.abs().max().clamp_min(1)
            )
            if not error <= TOLERANCE:
                raise LowtideError(
                    f"the {what} graph differs from the run by {error:.1e} on {len(images)} images:"
                    " nothing was written"
                )


def _each(outputs: object) -> Sequence[Any]:
    return outputs if isinstance(outputs, list | tuple) else (outputs,)

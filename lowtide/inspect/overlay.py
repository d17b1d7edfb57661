"""Draw attention maps over their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..inference.evaluate import Trained
from .drawing import library, new_figure, styled

SIDE = 1.35
"""Inches an image takes."""
COLOURS = "inferno"
FULL = 0.95
"""Quantile of a map that gets the brightest colour."""
DIM = 0.55
"""Brightness of the image under a map."""


def read_images(trained: Trained, paths: Sequence[Path]) -> tuple[Tensor, list[np.ndarray]]:
    """Read images as a model sees them, and as a person does.

    Args:
        trained: The model.
        paths: Image files.

    Returns:
        Model inputs (n, C, H, W), and the same pixels as uint8 (H, W, C).
    """
    transform = trained.transform
    images = [transform.before_cache(trained.preprocessing.decode(p)) for p in paths]
    inputs = torch.stack([transform.after_cache(x) for x in images])
    return inputs, [np.asarray(x).transpose(1, 2, 0) for x in images]


def draw_attention(
    pictures: Sequence[np.ndarray], maps: Mapping[str, Tensor], names: Sequence[str]
) -> Any:
    """Draw one row per image: the image, then every map over it.

    Each map is scaled to the value that one patch in twenty exceeds, since a few patches without
    content often take most of the attention (Darcet et al. 2024, arXiv:2309.16588). The less
    attention, the more of the darkened image is seen through it.

    Args:
        pictures: Pixels as uint8 (H, W, C).
        maps: By title of their column, (n, rows, columns) each.
        names: Of the images.

    Returns:
        The figure.
    """
    rows, columns = len(pictures), 1 + len(maps)
    with styled():
        figure = new_figure(SIDE * columns + 0.9, (SIDE + 0.08) * rows + 0.35)
        panels = figure.subplots(rows, columns, squeeze=False)
        for i, (row, picture, name) in enumerate(zip(panels, pictures, names, strict=True)):
            grey = picture.mean(-1)
            colour = picture if picture.shape[-1] == 3 else grey
            row[0].imshow(colour, cmap="gray", vmin=0, vmax=255)
            row[0].set_ylabel(name if len(name) < 20 else f"{name[:18]}...", fontsize=7)
            for axes, (title, values) in zip(row[1:], maps.items(), strict=True):
                heat = _spread(_scaled(values[i]), grey.shape)
                axes.imshow(grey, cmap="gray", vmin=0, vmax=255 / DIM)
                axes.imshow(heat, cmap=COLOURS, vmin=0, vmax=1, alpha=0.9 * heat)
                if i == 0:
                    axes.set_title(title, fontsize=7)
            for axes in row:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
        scale = library().cm.ScalarMappable(cmap=COLOURS)
        bar = figure.colorbar(
            scale,
            ax=panels[:, -1],
            shrink=max(0.5, 1 / rows),
            extend="max",
            label=f"attention / its {FULL:.0%} quantile",
        )
        bar.outline.set_visible(False)
    return figure


def _spread(heat: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """Bring a map to the size of its image."""
    return F.interpolate(heat[None, None], size, mode="bilinear")[0, 0].numpy()


def _scaled(values: Tensor) -> Tensor:
    full = values.quantile(FULL).clamp(min=torch.finfo(values.dtype).tiny)
    return (values / full).clamp(max=1)

"""Draw maps over the images they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import decode
from ..evaluate import Trained
from .drawing import new_figure, styled

SIDE = 1.35
"""Inches an image takes."""


def read_images(trained: Trained, paths: Sequence[Path]) -> tuple[Tensor, list[np.ndarray]]:
    """Read images as a model sees them, and as a person does.

    Args:
        trained: The model.
        paths: Image files.

    Returns:
        Model inputs (n, C, H, W), and the same pixels as uint8 (H, W, C).
    """
    transform = trained.transform
    still = [transform.still(decode(p, trained.preprocessing.channels)) for p in paths]
    inputs = torch.stack([transform.moving(x) for x in still])
    return inputs, [np.asarray(x).transpose(1, 2, 0) for x in still]


def draw_attention(
    pictures: Sequence[np.ndarray], maps: Mapping[str, Tensor], names: Sequence[str]
) -> Any:
    """Draw one row per image: the image, then every map over it.

    Each map is scaled to its own largest value and shown transparent over a grey image.

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
        shown = None
        for i, (row, picture, name) in enumerate(zip(panels, pictures, names, strict=True)):
            height, width = picture.shape[:2]
            grey = picture.mean(-1)
            row[0].imshow(
                picture if picture.shape[-1] == 3 else grey, cmap="gray", vmin=0, vmax=255
            )
            row[0].set_ylabel(name if len(name) < 20 else f"{name[:18]}...", fontsize=7)
            for axes, (title, values) in zip(row[1:], maps.items(), strict=True):
                heat = values[i] / values[i].max()
                axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
                shown = axes.imshow(
                    heat.numpy(),
                    cmap="inferno",
                    vmin=0,
                    vmax=1,
                    alpha=0.6,
                    interpolation="bilinear",
                    extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                )
                if i == 0:
                    axes.set_title(title, fontsize=7)
            for axes in row:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
        if shown is not None:
            bar = figure.colorbar(
                shown, ax=panels[:, -1], shrink=max(0.5, 1 / rows), label="attention / its largest"
            )
            bar.outline.set_visible(False)
    return figure

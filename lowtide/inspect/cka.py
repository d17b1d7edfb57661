"""How alike two models' features are, layer by layer: centred kernel alignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .drawing import new_figure, styled

WRITTEN = 12
"""Most layers whose similarities are written into the cells."""


def cka(x: Tensor, y: Tensor, *, unbiased: bool = False) -> float:
    """Measure the similarity of two sets of features of the same images.

        CKA(X, Y) = |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F),   columns centred
                                                         (Kornblith et al. 2019, arXiv:1905.00414)

    1 for equal features; unchanged by orthogonal maps and isotropic scaling of either side.

    Args:
        x: Features (n, d) of one model.
        y: Features (n, e) of the other.
        unbiased: See `similarity`.

    Returns:
        The similarity.
    """
    return float(similarity({"x": x}, {"y": y}, unbiased=unbiased))


def similarity(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, unbiased: bool = False
) -> Tensor:
    """Measure the similarity of every layer of one model to every layer of another.

    Computed as the cosine of the centred Gram matrices K = X X^T and L = Y Y^T, which is the same:
    <K, L> = |Y^T X|_F^2. With few images and many features CKA is too high; `unbiased` puts the
    unbiased estimate of HSIC in all three places (Song et al. 2012, JMLR 13; Nguyen et al. 2021,
    arXiv:2010.15327), which may fall below 0.

    Args:
        a: Features (n, d) of one model by layer, d as the layer has it.
        b: Features of the other, of the same images in the same order.
        unbiased: Whether to use the unbiased estimate; it needs four images, not two.

    Returns:
        Linear CKA (len(a), len(b)) in float64; NaN where a layer says the same of every image.

    Raises:
        InputError: The numbers of images differ, or there are too few.
    """
    counts = {len(x) for x in (*a.values(), *b.values())}
    least = 4 if unbiased else 2
    if len(counts) != 1 or min(counts) < least:
        raise InputError(
            f"CKA needs the same images for both models, at least {least}: got {sorted(counts)}"
        )
    first, second = (torch.stack([_gram(x, unbiased) for x in m.values()]) for m in (a, b))
    return first @ second.T


def draw_cka(matrix: Tensor, rows: str, columns: str) -> Any:
    """Draw similarities as a heat map, first layers at the lower left.

    Args:
        matrix: What `similarity` gave.
        rows: Name of the first model.
        columns: Name of the second.

    Returns:
        The figure.
    """
    height, width = matrix.shape
    with styled():
        figure = new_figure(4.6, 0.6 + 3.6 * min(max(height / width, 0.5), 1.5))
        axes = figure.add_subplot()
        lowest = min(0.0, float(matrix.nan_to_num().min()))
        image = axes.imshow(
            matrix.numpy(), origin="lower", cmap="magma", vmin=lowest, vmax=1, aspect="auto"
        )
        for (i, j), value in (
            np.ndenumerate(matrix.numpy()) if max(height, width) <= WRITTEN else ()
        ):
            shade = "black" if value > 0.6 else "white"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=shade)
        axes.set_ylabel(f"layer ({rows})")
        axes.set_xlabel(f"layer ({columns})")
        for axis, count in ((axes.yaxis, height), (axes.xaxis, width)):
            axis.set_ticks(range(0, count, -(-count // 12)))
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, label="linear CKA")
        bar.outline.set_visible(False)
    return figure


def _gram(x: Tensor, unbiased: bool) -> Tensor:
    """Centred Gram matrix of features, flat and of norm 1."""
    x = x.double()
    x = x - x.mean(0)
    k, n = x @ x.T, len(x)
    if unbiased:
        k.fill_diagonal_(0)
        rows = k.sum(1) / (n - 2)
        k = k - rows - rows[:, None] + k.sum() / ((n - 1) * (n - 2))
        k.fill_diagonal_(0)
    k = k.flatten()
    return k / k.norm()

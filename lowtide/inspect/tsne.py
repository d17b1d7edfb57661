"""Where images lie in feature space, on a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.manifold import TSNE
from torch import Tensor

from ..errors import InputError
from .drawing import library, new_figure, styled

PERPLEXITY = 30.0
LEGEND = 20
"""Most classes that are told apart by colour."""


def tsne(features: Tensor, *, perplexity: float = PERPLEXITY, seed: int = 0) -> np.ndarray:
    """Embed features in two dimensions (van der Maaten & Hinton 2008, JMLR 9), scikit-learn's way.

    Distances between groups and their sizes mean little; which images lie together does.

    Args:
        features: (n, d), such as `final_features` gives.
        perplexity: About how many neighbours an image has; at most (n - 1) / 3 is used.
        seed: Of scikit-learn's generator; the start is the first two principal components.

    Returns:
        Points (n, 2).

    Raises:
        InputError: There are fewer than 5 images, or the perplexity is not above 0.
    """
    if len(features) < 5 or perplexity <= 0:
        raise InputError(
            f"t-SNE needs at least 5 images and a perplexity above 0: got {len(features)} images"
            f" and {perplexity:g}"
        )
    used = min(perplexity, (len(features) - 1) / 3)
    return TSNE(perplexity=used, init="pca", random_state=seed).fit_transform(features.numpy())


def draw_tsne(
    points: Mapping[str, np.ndarray], labels: Sequence[int], classes: Sequence[str]
) -> Any:
    """Draw embeddings side by side, coloured by class.

    Args:
        points: What `tsne` gave, by name of the model; the same images in each.
        labels: Class of every image.
        classes: Class names.

    Returns:
        The figure.
    """
    present = sorted(set(labels))
    named = len(present) <= LEGEND
    with styled():
        maps = library().colormaps
        colours = maps["tab10" if len(present) <= 10 else "tab20"]
        if not named:
            colours = maps["hsv"].resampled(len(present))
        figure = new_figure(3.2 * len(points) + 1.2 * named, 3.2)
        panels = figure.subplots(1, len(points), squeeze=False)[0]
        for axes, (name, xy) in zip(panels, points.items(), strict=True):
            for i, label in enumerate(present):
                chosen = np.asarray(labels) == label
                axes.scatter(*xy[chosen].T, s=7, lw=0, color=colours(i), label=classes[label])
            axes.set(title=name, xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
            axes.set_aspect("equal", "datalim")
        if named:
            figure.legend(
                *panels[0].get_legend_handles_labels(), loc="outside right upper", markerscale=2
            )
        else:
            figure.suptitle(f"{len(present)} classes, one colour each")
    return figure

"""Start the classifier at a linear probe: logistic regression on the features it is given."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from torch import Tensor, nn

from ..families import logit_maps
from ..tuning.tuned import Tuned

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Inverse strengths of the penalty, of which cross-validation chooses; see `fit`."""
FOLDS = 3
TRIED = 2000
"""Images that the strengths are compared on, at most."""
WORK = 8 * 10**9
"""Products of images, features and classes in a pass over the images, at most."""
MEMORY = 64 << 20
"""Bytes of features, at most."""


@dataclass(frozen=True)
class Probe:
    """A linear map from features to logits.

    Attributes:
        weight: (K, C).
        bias: (K,).
        strength: The inverse strength of the penalty that was chosen.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float


def images_for_probe(tuned: Tuned, images: int) -> int:
    """Say how many images a probe is fitted on.

    Args:
        tuned: The model.
        images: How many there are.

    Returns:
        As many as time and memory allow; 0 where the classifier reads no vector per image.
    """
    width = sum(m.in_features for m in probed_maps(tuned))
    if not width:
        return 0
    return min(images, MEMORY // (4 * width), WORK // (width * tuned.num_classes))


def start_at_probe(
    tuned: Tuned, model: nn.Module, batches: Iterable[tuple[Tensor, ...]], seed: int
) -> bool:
    """Fit every classifier of a tuned model to the features it is given, and put that in its place.

    The features are the model's own as it stands, methods in place, so a method that does not start
    at the backbone is probed where it starts. Two classifiers whose logits are averaged get one
    probe each.

    Args:
        tuned: The model; its classifier is changed in place.
        model: What runs it.
        batches: What that takes, and labels.
        seed: Decides the folds.

    Returns:
        Whether there was anything to fit: features of one vector per image, and two classes.
    """
    maps = probed_maps(tuned)
    given: list[list[Tensor]] = [[] for _ in maps]
    hooks = [
        m.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].float().cpu()))
        for m, seen in zip(maps, given, strict=True)
    ]
    training, labels = model.training, []
    try:
        model.eval()
        with torch.no_grad():
            for images, classes in batches:
                model(images.to(maps[0].weight.device))
                labels.append(classes)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    y = torch.cat(labels).numpy()
    if len(np.unique(y)) < 2 or any(x.ndim != 2 for seen in given for x in seen):
        return False
    for m, seen in zip(maps, given, strict=True):
        probe = fit(torch.cat(seen).numpy(), y, tuned.num_classes, seed)
        with torch.no_grad():
            m.weight.copy_(torch.from_numpy(probe.weight))
            if m.bias is not None:
                m.bias.copy_(torch.from_numpy(probe.bias))
    return True


def probed_maps(tuned: Tuned) -> list[nn.Linear]:
    """Find the linear maps that give the logits.

    Args:
        tuned: The model.

    Returns:
        The maps; none where something else gives some of the logits.
    """
    maps = logit_maps(tuned.backbone, tuned.heads)
    linear = [m for m in maps if isinstance(m, nn.Linear)]
    return linear if len(linear) == len(maps) else []


def trains_beside(tuned: Tuned) -> bool:
    """Tell whether anything trains beside the maps that give the logits.

    Args:
        tuned: The model.

    Returns:
        Whether it does.
    """
    own = {id(p) for m in probed_maps(tuned) for p in m.parameters()}
    return any(p.requires_grad and id(p) not in own for p in tuned.parameters())


def fit(x: np.ndarray, y: np.ndarray, classes: int, seed: int) -> Probe:
    """Fit multinomial logistic regression, its penalty chosen by cross-validation.

        min over W, b of   sum_i -log softmax(W z_i + b)[y_i] + ||W||^2 / (2 c),
        z = (x - mean) / s,   s the deviation over all features together

    One s for all features leaves their directions as they are. c is the one of `STRENGTHS` with the
    best accuracy over three folds, of equals the smallest.

    Args:
        x: Features (N, C).
        y: Labels (N,), of two classes or more.
        classes: How many classes K there are; one that no image has stays at weight zero.
        seed: Decides the folds.

    Returns:
        The map from x to logits.
    """
    mean = x.mean(0)
    spread = float(np.std(x - mean)) or 1.0
    z = (x - mean) / spread
    strength = _strength(z, y, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = _regression(strength).fit(z, y)
    some_w, some_b = model.coef_, model.intercept_
    if len(some_b) == 1:  # of two classes scikit-learn fits the difference
        half = np.array([-0.5, 0.5])
        some_w, some_b = half[:, None] * some_w, half * some_b
    weight = np.zeros((classes, x.shape[1]), np.float32)
    bias = np.full(classes, some_b.min(), np.float32)
    weight[model.classes_] = some_w / spread
    bias[model.classes_] = some_b - some_w @ (mean / spread)
    return Probe(weight, bias, strength)


def _strength(z: np.ndarray, y: np.ndarray, seed: int) -> float:
    """Choose the penalty on some of the images."""
    some = np.random.default_rng(seed).permutation(len(z))[:TRIED]
    z, y = z[some], y[some]
    *_, second, first = sorted(np.bincount(y, minlength=2))
    if first < FOLDS or second < 2:  # some fold would leave one class to learn from, or none
        return 1.0
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = [cross_val_score(_regression(c), z, y, cv=folds).mean() for c in STRENGTHS]
    return STRENGTHS[int(np.argmax(scores))]


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=300)

"""Linear maps from features to outputs, each the minimum of a convex loss with a penalty."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import StratifiedKFold, cross_val_score

from .kind import LinearMap

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse strengths of the penalty, of which cross-validation chooses; see `softmax_regression`."""
LEAST = 0.1
"""Least deviation that a feature is divided by, over that of all together."""
FOLDS = 3
TRIED = 2000
"""Images that the strengths are compared on, at most."""


def softmax_regression(x: np.ndarray, y: np.ndarray, classes: int, seed: int) -> LinearMap:
    """Fit multinomial logistic regression, its penalty chosen by cross-validation.

        min over W, b of   sum_i -log softmax(W z_i + b)[y_i] + ||W||^2 / (2 c),
        z_j = (x_j - mean_j) / max(s_j, s / 10),   s_j the deviation of feature j, s that of all

    so that no feature counts more for being larger, and one that hardly varies here, but may once
    the backbone is tuned, does not get a large weight. c is the one of `STRENGTHS` with the best
    accuracy over three folds, of equals the smallest.

    Args:
        x: Features (N, C).
        y: Labels (N,), of two classes or more.
        classes: How many classes K there are; one that no image has stays at weight zero.
        seed: Decides the folds.

    Returns:
        The map from x to logits.
    """
    mean, spread, z = _scaled(x)
    strength = _strength(z, y, seed)
    model = _fitted(strength, z, y)
    some_w, some_b = model.coef_, model.intercept_
    if len(some_b) == 1:  # of two classes scikit-learn fits the difference
        half = np.array([-0.5, 0.5])
        some_w, some_b = half[:, None] * some_w, half * some_b
    weight = np.zeros((classes, x.shape[1]), np.float32)
    bias = np.full(classes, some_b.min(), np.float32)
    weight[model.classes_] = some_w / spread
    bias[model.classes_] = some_b - some_w @ (mean / spread)
    return LinearMap(weight, bias, strength)


def one_vs_rest(x: np.ndarray, y: np.ndarray, seed: int) -> LinearMap:
    """Fit a logistic regression to each label by itself, with one penalty for all.

        min over w_k, b_k of   sum_i log(1 + exp(-t_ik (w_k . z_i + b_k))) + ||w_k||^2 / (2 c)

    with t = 1 where the image has the label and -1 elsewhere; z as in `softmax_regression`. c is
    the one of `STRENGTHS` that cross-validation chooses for the label that is nearest to half of
    the images. A label of all images, or of none, has weight zero and a bias of
    log((n + 1) / (N - n + 1)), n of N images having it.

    Args:
        x: Features (N, C).
        y: Labels (N, K), 0 or 1.
        seed: Decides the folds.

    Returns:
        The map from x to logits.
    """
    mean, spread, z = _scaled(x)
    count = y.sum(0)
    weight = np.zeros((y.shape[1], x.shape[1]), np.float32)
    bias = np.log((count + 1) / (len(y) - count + 1)).astype(np.float32)
    told_apart = np.flatnonzero((count > 0) & (count < len(y)))
    if not len(told_apart):
        return LinearMap(weight, bias, 1.0)
    even = told_apart[np.argmin(np.abs(count[told_apart] - len(y) / 2))]
    strength = _strength(z, y[:, even].astype(int), seed)
    for k in told_apart:
        model = _fitted(strength, z, y[:, k].astype(int))
        weight[k] = model.coef_[0] / spread
        bias[k] = model.intercept_[0] - model.coef_[0] @ (mean / spread)
    return LinearMap(weight, bias, strength)


def ridge(x: np.ndarray, y: np.ndarray) -> LinearMap:
    """Fit ridge regression, its penalty chosen by leaving out one image at a time.

        min over w, b of   sum_i (w . z_i + b - y_i)^2 + ||w||^2 / c,   z as in `softmax_regression`

    c is the one of `STRENGTHS` with the smallest squared error of the images left out.

    Args:
        x: Features (N, C).
        y: Numbers (N, K).

    Returns:
        The map from x to y.
    """
    mean, spread, z = _scaled(x)
    model = RidgeCV(alphas=[1 / c for c in STRENGTHS]).fit(z, y)
    coefficients = model.coef_.reshape(y.shape[1], -1)
    weight = (coefficients / spread).astype(np.float32)
    bias = (model.intercept_ - coefficients @ (mean / spread)).astype(np.float32)
    return LinearMap(weight, bias, float(1 / model.alpha_))


def _scaled(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre features, and divide each by its deviation."""
    mean = x.mean(0)
    spread = np.maximum(x.std(0), LEAST * (np.std(x - mean) or 1.0))
    return mean, spread, (x - mean) / spread


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


def _fitted(strength: float, z: np.ndarray, y: np.ndarray) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _regression(strength).fit(z, y)


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=300)

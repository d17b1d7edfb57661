"""Calibration of a classifier: how its probabilities compare with how often it is right."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

BINS = 15
WIDEST = math.log(100.0)
"""Temperatures are sought between 1 / 100 and 100."""


def expected_calibration_error(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> float:
    """Compare confidence with accuracy (Guo et al. 2017, arXiv:1706.04599, eq. 3).

        ECE = sum over b of |B_b| / N  |acc(B_b) - conf(B_b)|

    over 15 bins of equal width on (0, 1], an image in the bin of its largest probability.

    Args:
        logits: (N, K).
        targets: Classes (N,).
        temperature: What logits are divided by before the softmax.

    Returns:
        The error, from 0 to 1.
    """
    confidence, answer = (logits.double() / temperature).softmax(-1).max(-1)
    right = (answer == targets).double()
    bins = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, right - confidence)
    return float(gaps.abs().sum() / len(targets))


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Fit the temperature that logits are divided by, on images held out.

        T = argmin over t > 0 of   mean_i -log softmax(logits_i / t)[y_i]

    (Guo et al. 2017, section 4.2). The loss is convex in 1 / t, so that it has one minimum; where
    it falls for ever, as of images that are all answered rightly, T is 1 / 100.

    Args:
        logits: (N, K), of images that nothing was learnt from.
        targets: Classes (N,).

    Returns:
        T.
    """
    logits = logits.double()

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_t), targets))

    found = minimize_scalar(loss, bounds=(-WIDEST, WIDEST), method="bounded")
    return float(np.exp(found.x))

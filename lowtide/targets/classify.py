"""One class of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, recall_score, roc_auc_score
from torch import Tensor

from .calibration import expected_calibration_error
from .kind import Balance, Label, LinearMap, Targets
from .linear import softmax_regression
from .numbers import refuse_no_number


@dataclass(frozen=True)
class Classify(Targets):
    """One class per image; a target is its index.

        L = mean_i  w[y_i] CE(outputs_i, y_i)

    with `balance weights`  w_k = N / (K n_k),  n_k the training images of class k of K that have
    any, N all of them: inverse frequency, of mean 1 over the training images. Otherwise w = 1.

    Attributes:
        smoothing: Label smoothing.
        weights: w; empty where all are 1.
    """

    task: ClassVar[str] = "classify"
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    metric: ClassVar[str] = "accuracy"
    balances: ClassVar[bool] = True

    smoothing: float = 0.0
    weights: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        labels: Sequence[Label],
        *,
        loss: str | None = None,
        balance: Balance = "none",
        smoothing: float = 0.0,
    ) -> Self:
        """Count the classes where they are weighed; there is one loss."""
        weights = class_weights(labels, len(names)) if balance == "weights" else ()
        return cls(names, smoothing, weights)

    @staticmethod
    def examples(outputs: int) -> Sequence[Label]:
        """Give one label of each class, its index."""
        return range(outputs)

    def batch(self, images: int) -> Tensor:
        """Give zeros (B,), int64."""
        return torch.zeros(images, dtype=torch.long)

    def encode(self, targets: Tensor) -> Tensor:
        """Return the labels unchanged."""
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the weighed cross-entropy; targets of mixed images are shares (B, K)."""
        outputs = outputs.float()
        if not self.weights:
            return F.cross_entropy(outputs, targets, label_smoothing=self.smoothing)
        each = F.cross_entropy(outputs, targets, label_smoothing=self.smoothing, reduction="none")
        weights = torch.tensor(self.weights, device=outputs.device)
        of_images = weights[targets] if targets.ndim == 1 else targets @ weights  # mixed images
        return (each * of_images).mean()

    def score(self, outputs: Tensor, targets: Tensor) -> float | None:
        """Compute the accuracy: the share of images whose largest logit is their class's."""
        return int((outputs.argmax(-1) == targets).sum()) / len(targets) if len(targets) else None

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute every score; means over classes are over those that some image has.

        `auroc` is the mean over classes of the area under the ROC curve of each against the rest;
        it is not there where all images are of one class. `ece` is the expected calibration error.

        Args:
            outputs: Logits (N, K).
            targets: Classes (N,).

        Returns:
            Scores by name.

        Raises:
            LowtideError: A logit is no number.
        """
        refuse_no_number(outputs)
        truth, taken = targets.numpy(), outputs.argmax(-1).numpy()
        present = np.unique(truth)
        shares = outputs.double().softmax(-1).numpy()
        among: dict[str, object] = {"labels": present, "zero_division": 0.0}
        found = {
            "accuracy": float((truth == taken).mean()),
            "mean_class_accuracy": float(recall_score(truth, taken, average="macro", **among)),
            "macro_f1": float(f1_score(truth, taken, average="macro", **among)),
        }
        if len(present) > 1:
            areas = [roc_auc_score(truth == k, shares[:, k]) for k in present]
            found["auroc"] = float(np.mean(areas))
        return {**found, "ece": expected_calibration_error(outputs, targets)}

    @staticmethod
    def averaged(outputs: Sequence[Tensor]) -> Tensor:
        """Average the probabilities; give their logarithms (N, K)."""
        return torch.stack([o.softmax(-1) for o in outputs]).mean(0).log()

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int) -> LinearMap | None:
        """Fit logistic regression; None where all images are of one class."""
        if len(np.unique(y)) < 2:
            return None
        return softmax_regression(x, y, len(self.names), seed)

    def answer(self, output: Tensor, top: int) -> dict[str, object]:
        """Give the most probable class, and probabilities by class, best first."""
        best = output.softmax(-1).topk(min(top, len(self.names)))
        names = [self.names[i] for i in best.indices.tolist()]
        return {
            "class": names[0],
            "probabilities": dict(zip(names, best.values.tolist(), strict=True)),
        }

    @classmethod
    def text(cls, names: Sequence[str], label: Label) -> str:
        """Name a class."""
        assert isinstance(label, int)
        return names[label]


def class_weights(labels: Sequence[Label], classes: int) -> tuple[float, ...]:
    """Weigh classes by inverse frequency: w_k = N / (K n_k); see `Classify`.

    Args:
        labels: Indices of classes, one or more.
        classes: How many classes there are.

    Returns:
        w; 0 for a class that no label is.
    """
    counts = np.bincount(np.asarray(labels), minlength=classes)
    present = int((counts > 0).sum())
    return tuple(len(labels) / (present * n) if n else 0.0 for n in counts.tolist())


def draw_weights(labels: Sequence[Label], classes: int) -> tuple[float, ...]:
    """Weigh images so that a draw gives each class as often: 1 / n_y, n_k the images of class k.

    Args:
        labels: Indices of classes, one or more.
        classes: How many classes there are.

    Returns:
        A weight for each label.
    """
    indices = np.asarray(labels)
    counts = np.bincount(indices, minlength=classes)
    return tuple((1 / counts[indices]).tolist())


KIND = Classify

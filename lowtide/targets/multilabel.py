"""Any number of labels per image, also none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from .kind import Balance, Label, LinearMap, Targets
from .linear import one_vs_rest
from .numbers import refuse_no_number

THRESHOLD = 0.5


@dataclass(frozen=True)
class Multilabel(Targets):
    """Several labels per image; a target is 1 for each that it has, and 0 for the others.

        L = mean_i mean_k  -t_ik log s(o_ik) - (1 - t_ik) log(1 - s(o_ik)),   s the sigmoid

    A label is answered where its probability s(o) is 0.5 or more. With label smoothing e, t is
    (1 - e) t + e / 2.

    Attributes:
        smoothing: e.
    """

    task: ClassVar[str] = "multilabel"
    losses: ClassVar[tuple[str, ...]] = ("bce",)
    metric: ClassVar[str] = "map"

    smoothing: float = 0.0

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
        """Take the names and the smoothing; there is one loss, and no balance."""
        return cls(names, smoothing)

    @staticmethod
    def examples(outputs: int) -> Sequence[Label]:
        """Give an image without labels."""
        return [(0.0,) * outputs]

    def encode(self, targets: Tensor) -> Tensor:
        """Smooth the labels (B, K), 0 or 1, to float32."""
        return targets.float() * (1 - self.smoothing) + self.smoothing / 2

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the binary cross-entropy, a mean over images and labels."""
        return F.binary_cross_entropy_with_logits(outputs.float(), targets)

    def score(self, outputs: Tensor, targets: Tensor) -> float | None:
        """Compute the mean average precision over the labels that some image has.

        Args:
            outputs: Logits (N, K).
            targets: (N, K).

        Returns:
            mAP; None where no image has a label.

        Raises:
            LowtideError: A logit is no number.
        """
        refuse_no_number(outputs)
        truth = targets.numpy()
        present = np.flatnonzero(truth.any(0)) if len(truth) else np.arange(0)
        each = [average_precision_score(truth[:, k], outputs[:, k].numpy()) for k in present]
        return float(np.mean(each)) if each else None

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute every score: `map`, and F1 at a threshold of 0.5.

        `macro_f1` is the mean over the labels that some image has, `micro_f1` that of all answers
        together; `exact` is the share of images whose labels are answered without a fault.

        Args:
            outputs: Logits (N, K).
            targets: (N, K).

        Returns:
            Scores by name; `map` and `macro_f1` are not there where no image has a label.

        Raises:
            LowtideError: A logit is no number.
        """
        precision = self.score(outputs, targets)
        truth = targets.numpy() > THRESHOLD
        taken = outputs.sigmoid().numpy() >= THRESHOLD
        found = {} if precision is None else {"map": precision}
        if present := np.flatnonzero(truth.any(0)).tolist():
            found["macro_f1"] = float(
                np.mean([f1_score(truth[:, k], taken[:, k], zero_division=0.0) for k in present])
            )
        both = int((truth & taken).sum())
        found["micro_f1"] = 2 * both / max(1, int(truth.sum()) + int(taken.sum()))
        return {**found, "exact": float((truth == taken).all(1).mean())}

    @staticmethod
    def averaged(outputs: Sequence[Tensor]) -> Tensor:
        """Average the probabilities; give their logits (N, K)."""
        return torch.stack([o.sigmoid() for o in outputs]).mean(0).logit()

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int) -> LinearMap | None:
        """Fit one logistic regression to each label."""
        return one_vs_rest(x, y, seed)

    def answer(self, output: Tensor, top: int) -> dict[str, object]:
        """Give the labels at 0.5 or more, and probabilities by label, best first."""
        shares = output.sigmoid()
        best = shares.topk(min(top, len(self.names)))
        return {
            "labels": [
                n for n, p in zip(self.names, shares.tolist(), strict=True) if p >= THRESHOLD
            ],
            "probabilities": {
                self.names[i]: p
                for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            },
        }

    @classmethod
    def text(cls, names: Sequence[str], label: Label) -> str:
        """Write the labels of an image with semicolons between."""
        assert isinstance(label, tuple)
        return ";".join(n for n, value in zip(names, label, strict=True) if value)


KIND = Multilabel

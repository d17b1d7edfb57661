"""A number per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor

from ..errors import InputError
from ..values import read
from .kind import Balance, Label, LinearMap, Targets
from .linear import ridge
from .numbers import refuse_no_number


@dataclass(frozen=True)
class Regress(Targets):
    """A number per image, learnt in units of the training images' deviation.

        L = mean_i  l(o_i - t_i),   t = (y - mean) / std,
        l(d) = d^2 (mse),   or d^2 / 2 where |d| < 1, else |d| - 1/2 (smooth_l1)

    An answer is  o std + mean.

    Attributes:
        mean: Mean of the training images' numbers.
        std: Their deviation (of all of them, not of a sample).
        smooth: Whether l is the smooth L1.
    """

    task: ClassVar[str] = "regress"
    losses: ClassVar[tuple[str, ...]] = ("mse", "smooth_l1")
    metric: ClassVar[str] = "r2"
    logits: ClassVar[bool] = False

    mean: float = 0.0
    std: float = 1.0
    smooth: bool = False

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
        """Compute mean and deviation of the training images; see `Targets.of`.

        Args:
            names: Of the number.
            labels: Those of the training images.
            loss: `mse`, which is the default, or `smooth_l1`.
            balance: There is none.
            smoothing: There is none.

        Returns:
            The targets.

        Raises:
            InputError: Labels are to be smoothed, all numbers are the same, or one is too large.
        """
        if smoothing:
            raise InputError("smoothing is of labels: task regress has none")
        values = np.asarray(labels, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            deviation = values.std()
        if not deviation > 0 and np.isfinite(deviation):
            raise InputError(
                f"every training image has {names[0]} {values.flat[0]:g}: expected numbers that"
                " differ"
            )
        if not np.isfinite(deviation):
            raise InputError(f"{names[0]} reaches {values.max():g}: its deviation is no number")
        return cls(names, float(values.mean()), float(deviation), loss == "smooth_l1")

    @staticmethod
    def examples(outputs: int) -> Sequence[Label]:
        """Give two numbers."""
        return [(0.0,) * outputs, (1.0,) * outputs]

    def encode(self, targets: Tensor) -> Tensor:
        """Subtract the mean, divide by the deviation: float32 (B, 1)."""
        return ((targets - self.mean) / self.std).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss in units of the training deviation."""
        distance = F.smooth_l1_loss if self.smooth else F.mse_loss
        return distance(outputs.float(), targets)

    def numbers(self, outputs: Tensor) -> Tensor:
        """Give outputs in the units of the labels.

        Args:
            outputs: (N, 1).

        Returns:
            (N, 1), float64.
        """
        return outputs.double() * self.std + self.mean

    def score(self, outputs: Tensor, targets: Tensor) -> float | None:
        """Compute the share of the variance that is explained.

        Args:
            outputs: (N, 1).
            targets: (N, 1).

        Returns:
            R^2 = 1 - sum (y - answer)^2 / sum (y - mean y)^2; None where all y are the same.

        Raises:
            LowtideError: An output is no number.
        """
        refuse_no_number(outputs)
        if len(targets) < 2 or not bool((targets != targets[0]).any()):
            return None
        return float(r2_score(targets.numpy(), self.numbers(outputs).numpy()))

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute every score: `mae` and `rmse` in the units of the labels, and `r2`.

        Args:
            outputs: (N, 1).
            targets: (N, 1).

        Returns:
            Scores by name; `r2` is not there where all labels are the same.

        Raises:
            LowtideError: An output is no number.
        """
        explained = self.score(outputs, targets)
        truth, taken = targets.numpy(), self.numbers(outputs).numpy()
        found = {
            "mae": float(mean_absolute_error(truth, taken)),
            "rmse": float(root_mean_squared_error(truth, taken)),
        }
        return found if explained is None else {**found, "r2": explained}

    @staticmethod
    def averaged(outputs: Sequence[Tensor]) -> Tensor:
        """Give the mean (N, 1) of several outputs."""
        return torch.stack(list(outputs)).mean(0)

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int) -> LinearMap | None:
        """Fit ridge regression."""
        from_mean = (y - self.mean) / self.std
        return ridge(x, from_mean)

    def answer(self, output: Tensor, top: int) -> dict[str, object]:
        """Give the predicted number."""
        return {"value": float(self.numbers(output))}

    @classmethod
    def text(cls, names: Sequence[str], label: Label) -> str:
        """Write a number so that it reads back the same."""
        assert isinstance(label, tuple)
        return repr(label[0])

    def to_dict(self) -> dict[str, object]:
        """Give mean and deviation of the training images."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def from_dict(cls, names: tuple[str, ...], content: Mapping[str, object]) -> Self:
        """Read what `to_dict` gave.

        Args:
            names: Of the number.
            content: Mean and deviation.

        Returns:
            The targets.

        Raises:
            InputError: One is missing, or is no number that it can be.
        """
        mean, std = (read(name, float, content.get(name)) for name in ("mean", "std"))
        if not std > 0:
            raise InputError(f"std must be a number above 0, not {std}")
        return cls(names, mean, std)


KIND = Regress

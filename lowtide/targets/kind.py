"""The interface of every kind of targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

Label = int | tuple[float, ...]
"""The target of one image: the index of its class, or a number for each output."""
Balance = Literal["none", "weights", "sampler"]


@dataclass(frozen=True)
class LinearMap:
    """A linear map from features to outputs.

    Attributes:
        weight: (K, C).
        bias: (K,).
        strength: The strength of the penalty that was chosen.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float


@dataclass(frozen=True)
class Targets(ABC):
    """Targets of one kind, as a training set has them.

    Attributes:
        task: What learning them is called.
        losses: Names of the losses, the kind's own first.
        metric: Name of the score that is followed and chosen by; higher is better.
        balances: Whether there are classes of which some may be rare.
        logits: Whether outputs are logits: times any positive number they answer the same.
        names: Of the outputs, in their order.
    """

    task: ClassVar[str]
    losses: ClassVar[tuple[str, ...]]
    metric: ClassVar[str]
    balances: ClassVar[bool] = False
    logits: ClassVar[bool] = True

    names: tuple[str, ...]

    @classmethod
    @abstractmethod
    def of(
        cls,
        names: tuple[str, ...],
        labels: Sequence[Label],
        *,
        loss: str | None = None,
        balance: Balance = "none",
        smoothing: float = 0.0,
    ) -> Self:
        """Compute from a training set what the loss needs of it.

        Args:
            names: Of the outputs.
            labels: Those of the training images.
            loss: One of `losses`; by default the first.
            balance: How rare classes are weighed.
            smoothing: Label smoothing.

        Returns:
            The targets.
        """

    @staticmethod
    @abstractmethod
    def examples(outputs: int) -> Sequence[Label]:
        """Give labels that `of` takes, for a plan.

        Args:
            outputs: How many outputs there are.

        Returns:
            A few labels.
        """

    def batch(self, images: int) -> Tensor:
        """Give targets of the shape and type that `loss` takes.

        Args:
            images: How many.

        Returns:
            Zeros, (B, K) unless a kind says otherwise.
        """
        return torch.zeros(images, len(self.names))

    @abstractmethod
    def encode(self, targets: Tensor) -> Tensor:
        """Turn targets into the form that `loss` takes.

        Args:
            targets: As a loader gives them: (B,) int64, or (B, K) float64.

        Returns:
            Of the same shape.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Measure how far outputs are from targets: a mean over images.

        Args:
            outputs: (B, K), of any precision.
            targets: What `encode` gives.

        Returns:
            A float32 number.
        """

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> float | None:
        """Compute the score that is followed during training.

        Args:
            outputs: (N, K), float32.
            targets: (N,) or (N, K).

        Returns:
            `metric`; None where it is not defined.
        """

    @abstractmethod
    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute every score.

        Args:
            outputs: (N, K), float32, of one image or more.
            targets: (N,) or (N, K).

        Returns:
            Scores by name, without those that are not defined on these targets.

        Raises:
            LowtideError: An output is no number.
        """

    @staticmethod
    @abstractmethod
    def averaged(outputs: Sequence[Tensor]) -> Tensor:
        """Average several outputs for the same images.

        Args:
            outputs: (N, K) each.

        Returns:
            Outputs (N, K) whose answer is the mean of theirs.
        """

    @abstractmethod
    def fit(self, x: np.ndarray, y: np.ndarray, seed: int) -> LinearMap | None:
        """Fit outputs to features by a convex loss, as a start.

        Args:
            x: Features (N, C).
            y: Targets (N,) or (N, K).
            seed: Decides the folds.

        Returns:
            The map from features to outputs; None where there is nothing to tell apart.
        """

    @abstractmethod
    def answer(self, output: Tensor, top: int) -> dict[str, object]:
        """Turn a model's output for an image into a prediction.

        Args:
            output: (K,), float32.
            top: How many names to give, best first.

        Returns:
            What JSON can hold.
        """

    @classmethod
    @abstractmethod
    def text(cls, names: Sequence[str], label: Label) -> str:
        """Write a label as it is recorded.

        Args:
            names: Of the outputs.
            label: The label.

        Returns:
            The same text for the same label.
        """

    def to_dict(self) -> dict[str, object]:
        """Give what must be saved to use a model, beside the names.

        Returns:
            What `from_dict` takes; nothing unless a kind says otherwise.
        """
        return {}

    @classmethod
    def from_dict(cls, names: tuple[str, ...], content: Mapping[str, object]) -> Self:
        """Make the targets of a trained model from what `to_dict` gave.

        Args:
            names: Of the outputs.
            content: The rest, from a file that may be anybody's.

        Returns:
            The targets.

        Raises:
            InputError: Something is missing or does not fit.
        """
        return cls(names)

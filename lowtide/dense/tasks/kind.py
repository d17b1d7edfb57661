"""The interface of every dense task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...data.dense import Kind as Kind
from ...data.dense import transforms
from ..options import TaskConfig
from ..results import Predicted
from ..scores import Scores

Target = Mapping[str, Any]
"""What is labelled in an image, as `lowtide.data.dense` gives it."""


@dataclass(frozen=True)
class DenseTask(ABC):
    """A task on images of any size through a model that takes squares of one size.

    Attributes:
        task: Its name.
        kind: Labels it is learnt from.
        metric: Name of the score that runs are compared by; higher is better.
        names: Of the classes, by number.
        size: Side of the square images the model takes.
        mean: Of pixels between 0 and 1, a channel each; subtracted.
        std: What is divided by then.
        config: The other options.
        smoothing: Label smoothing.
    """

    task: ClassVar[str]
    kind: ClassVar[Kind]
    metric: ClassVar[str]

    names: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    config: TaskConfig
    smoothing: float = 0.0

    @abstractmethod
    def model(self, body: nn.Module) -> nn.Module:
        """Build the model around a backbone.

        Args:
            body: A timm backbone, made for images of `size`; its classifier is taken off.

        Returns:
            The model; what is not the backbone is at random.
        """

    @abstractmethod
    def collate(self, samples: Sequence[tuple[Tensor, Target]]) -> tuple[Any, Tensor]:
        """Make a batch.

        Args:
            samples: Images `(C, size, size)` float32, normalised, and what is labelled in them.

        Returns:
            What the model takes in training, and what `loss` takes beside the model's answer.
        """

    @abstractmethod
    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Measure how far the model's answer is from what is labelled.

        Args:
            outputs: What the model gave in training.
            targets: What `collate` gave second.

        Returns:
            A mean over images, float32.
        """

    @abstractmethod
    def example(self, batch_size: int, shape: tuple[int, int, int]) -> tuple[object, Tensor]:
        """Give a batch of the shapes that training has, for a plan.

        Args:
            batch_size: Images.
            shape: Of an image.

        Returns:
            What `collate` gives, of arbitrary content.
        """

    @abstractmethod
    def predict(self, model: nn.Module, images: Sequence[Tensor]) -> Sequence[Predicted]:
        """Answer for images of any size.

        Args:
            model: The model, in evaluation.
            images: `(C, H, W)` uint8, each of its own size, on the CPU.

        Returns:
            For each the classes of its pixels `(H, W)` int64, or a mapping with `boxes` `(N, 4)`,
            `labels` and `scores` `(N,)`, and `masks` `(N, H, W)` bool; in pixels of the image.
        """

    @abstractmethod
    def labelled(self, target: Target) -> Predicted:
        """Give the labels of an image in the form in which `predict` gives predictions.

        Args:
            target: What is labelled, at the image's own size.

        Returns:
            The same as from `predict`, but for scores.
        """

    @abstractmethod
    def scorer(self) -> Scorer:
        """Start to score predictions.

        Returns:
            What counts them.
        """

    @staticmethod
    def encode(targets: Tensor) -> Tensor:
        """Return targets as `loss` takes them.

        Args:
            targets: What `collate` gave second.

        Returns:
            The same.
        """
        return targets

    def to_dict(self) -> dict[str, object]:
        """Give what must be saved to use a model, beside the options of its run.

        Returns:
            Nothing.
        """
        return {}

    @property
    def random(self) -> bool:
        """Whether training sees an image differently each time."""
        return self.config.recipe != "none"

    def transform(self, training: bool) -> Callable[..., tuple[Tensor, Target]]:
        """Make the transform of images and what is labelled in them.

        Args:
            training: Whether they are learnt from.

        Returns:
            From both, of any size, to both of the model's, pixels normalised.
        """
        return transforms(
            self.kind,
            self.size,
            train=training,
            recipe=self.config.recipe,
            mean=self.mean,
            std=self.std,
        )

    def normalized(self, image: Tensor) -> Tensor:
        """Normalise pixels as the backbone's weights expect.

        Args:
            image: `(C, H, W)` uint8, or batches of it.

        Returns:
            float32 of the same shape.
        """
        mean, std = (
            torch.tensor(v, device=image.device).view(-1, 1, 1) for v in (self.mean, self.std)
        )
        return (image.float() / 255 - mean) / std


class Scorer(ABC):
    """Counts predictions of a split."""

    @abstractmethod
    def update(self, predicted: Predicted, target: Target) -> None:
        """Count an image.

        Args:
            predicted: What `DenseTask.predict` gave for it.
            target: What is labelled in it, at its own size.
        """

    @abstractmethod
    def gather(self) -> None:
        """Count what every process has counted."""

    @abstractmethod
    def compute(self) -> Scores:
        """Score all images so far.

        Returns:
            The scores.
        """

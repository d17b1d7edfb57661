"""The labels of a dense run: splits for its record, and images with labels for its loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import Dataset
from ..data.dense import DenseFolder, DenseSplit, read
from ..dense.tasks import TASKS, DenseTask
from ..dense.tasks.kind import Target
from .config import RunConfig

Item = tuple[Tensor, Target]
"""An image and what is labelled in it."""


@dataclass(frozen=True)
class Described(Dataset):
    """The splits of dense labels, for the record of a run.

    Attributes:
        folder: The labels themselves.
    """

    folder: DenseFolder = field(kw_only=True)

    @classmethod
    def of(cls, folder: DenseFolder) -> Described:
        """Take the splits of a folder.

        Args:
            folder: The labels.

        Returns:
            Each image with a digest of its labels.
        """
        return cls(**vars(folder.listed()), folder=folder)

    def describe(self) -> dict[str, object]:
        """Say what `DenseFolder.describe` says, with the numbers of images as they are used."""
        counts = {which: len(part) for which, part in self.splits.items()}
        return {**self.folder.describe(), **counts, "classes": list(self.folder.classes)}

    @cached_property
    def places(self) -> dict[Path, tuple[DenseSplit, int]]:
        """The split and the position of each image."""
        return {
            image.path: (split, i)
            for split in self.folder.splits.values()
            for i, image in enumerate(split.images)
        }

    def item(self, path: Path) -> Item:
        """Decode an image and its labels.

        Args:
            path: The image.

        Returns:
            Both, at the image's own size.
        """
        split, i = self.places[path]
        return split[i]


@dataclass(frozen=True)
class Transformed:
    """The transform of images and labels, which a loader applies to each image.

    Attributes:
        dataset: Where.
        after_cache: The transform of both.
        random: Whether two calls on one image may differ.
    """

    dataset: Described
    after_cache: Callable[[Item], Item]
    random: bool

    def load(self, path: Path, transform: object) -> Item:
        """Decode an image and its labels.

        Args:
            path: The image.
            transform: Not asked.

        Returns:
            What `after_cache` takes.
        """
        return self.dataset.item(path)


@dataclass(frozen=True)
class Together:
    """Calls a transform of both with an image and its labels.

    Attributes:
        transform: Of `lowtide.data.dense`.
    """

    transform: Callable[..., Item]

    def __call__(self, item: Item) -> Item:
        """Transform both.

        Args:
            item: An image and its labels.

        Returns:
            Both.
        """
        found: Item = self.transform(*item)
        return found


@dataclass(frozen=True)
class Collate:
    """Makes a task's batch of a loader's items.

    Attributes:
        task: The task.
    """

    task: DenseTask

    def __call__(self, items: list[tuple[Item, int]]) -> tuple[Any, Tensor]:
        """Leave the digests of labels out.

        Args:
            items: Images with their labels, and digests.

        Returns:
            The task's batch.
        """
        return self.task.collate([item for item, _ in items])


def read_dense(config: RunConfig, data: str | None = None) -> Described:
    """Read the labels of a run.

    Args:
        config: The run.
        data: Other data than its own.

    Returns:
        The splits.
    """
    folder = read(
        data or config.data,
        kind=TASKS[config.task].kind,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        skip_bad_images=config.skip_bad_images,
    )
    dataset = Described.of(folder)
    if config.train_on_val:
        dataset = replace(dataset, train=dataset.train + dataset.val, val=())
    return dataset

"""Batches whose order and augmentation are a pure function of (seed, epoch)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, WeightedRandomSampler
from torch.utils.data import Dataset as TorchDataset

from .dataset import Sample
from .preprocessing import Preprocessing, Transform


class AfterCache(Protocol):
    """The part of a transform that a loader runs on each image after the cache."""

    @property
    def random(self) -> bool:
        """Whether two calls on one image may differ."""

    @property
    def after_cache(self) -> Callable[..., Tensor]:
        """Turns what `ImageSource.load` returns into the model's input."""


class ImageSource(Protocol):
    """Where a loader gets the part of an image that is the same every time, such as a `Cache`."""

    def load(self, path: Path, transform: Any) -> Any:
        """Decode an image, or look up what is cached of it.

        Args:
            path: The image.
            transform: The loader's.

        Returns:
            What `transform.after_cache` takes.
        """


class Cache:
    """Resized uint8 images, kept from the first epoch on, up to a number of bytes.

    A 224 x 224 RGB image takes 150,528 bytes. What no longer fits is decoded each time, so the
    images are the same with any limit. One cache may serve several loaders.

    Attributes:
        limit_bytes: No image is added that would exceed this.
        bytes: What the images kept so far take.
    """

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._images: dict[tuple[Path, Preprocessing, bool], Tensor] = {}

    def load(self, path: Path, transform: Transform) -> Tensor | Image:
        """Decode an image and apply what a transform does before the cache, or find the result.

        Args:
            path: The image.
            transform: What it does before the cache decides what is kept.

        Returns:
            What `transform.after_cache` takes. Not to be written to.
        """
        key = (path, transform.preprocessing, transform.augment == "crop")
        found = self._images.get(key)
        if found is not None and transform.cacheable:
            return found
        made = transform.before_cache(transform.preprocessing.decode(path))
        if transform.cacheable and self.bytes + made.nbytes <= self.limit_bytes:
            self._images[key] = made
            self.bytes += made.nbytes
        return made


class _Images(TorchDataset[tuple[Tensor, int | Tensor]]):
    def __init__(
        self, samples: Sequence[Sample], transform: AfterCache, key: str, cache: ImageSource
    ) -> None:
        self.samples, self.transform, self.key, self.cache = samples, transform, key, cache

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        path, given = self.samples[index % len(self.samples)]  # copies of an image draw apart
        # One number an output is collated into (B, K), the index of a class into (B,).
        label = given if isinstance(given, int) else torch.tensor(given, dtype=torch.float64)
        cached = self.cache.load(path, self.transform)
        if not self.transform.random:
            return self.transform.after_cache(cached), label
        with _seeded(_seed(f"{self.key}/{index}")):
            return self.transform.after_cache(cached), label


def share(images: int, rank: int, processes: int) -> int:
    """Count one process's part of a batch; parts differ by one image at most.

    Args:
        images: Images of the batch, all processes together.
        rank: Which process.
        processes: How many there are.

    Returns:
        Its images; the first of them take those that are left over.
    """
    return images // processes + (rank < images % processes)


def loader(
    samples: Sequence[Sample],
    transform: AfterCache,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    drop_last: bool = False,
    cache: ImageSource | None = None,
    rank: int = 0,
    processes: int = 1,
    collate: Callable[[list[Any]], Any] | None = None,
    weights: Sequence[float] | None = None,
    repeats: int = 1,
) -> DataLoader[tuple[Tensor, int | Tensor]]:
    """Load one epoch of batches: images `(B, C, H, W)` float32, labels `(B,)` int64.

    Labels that are numbers for each output are `(B, K)` float64.

    The permutation (with weights the draw) comes from (seed, epoch), each image's augmentation from
    (seed, epoch, index). No worker, no earlier epoch and no global generator has a say or is
    changed, so a run resumed at an epoch sees what the uninterrupted one saw, bit for bit. Several
    processes share the batches that one would load with `processes * batch_size`.

    Args:
        samples: What to load.
        transform: From a decoded image to a tensor.
        batch_size: Images per batch, of each process.
        shuffle: Whether to permute the samples.
        seed: The run's seed.
        epoch: Which epoch this is.
        workers: Processes that decode; 0 decodes in this one.
        drop_last: Whether to leave out a last batch that is not full.
        cache: Resized images to keep between epochs; unused with workers, which die with theirs.
        rank: Which process this is.
        repeats: How often each image of a batch is in it, each time augmented anew; an epoch is as
            long as without, so it sees 1 in `repeats` images. For shuffled images alone.
        processes: How many share each batch. One that `share` gives no image of a last batch gets
            an image of another's, so that all load equally many batches.
        collate: Makes a batch of what `transform` gives and the labels; by default torch's.
        weights: Draw as many samples as there are, with replacement, each in proportion to its
            weight, instead of permuting them.

    Returns:
        The loader. Iterating may raise `UnreadableImage` if a file has gone or changed.
    """
    key = f"{seed}/{epoch}"
    generator = torch.Generator().manual_seed(_seed(key))
    if weights is not None:
        drawn = WeightedRandomSampler(weights, len(samples), generator=generator)
        # By place in the epoch, or a sample that is drawn twice would be augmented alike.
        samples = [samples[i] for i in drawn]
        order = list(range(len(samples)))
    else:
        order = torch.randperm(len(samples), generator=generator).tolist()
    if cache is None or (workers and isinstance(cache, Cache)):
        cache = Cache(limit_bytes=0)
    order = _repeated(order, repeats) if shuffle else list(range(len(samples)))
    batches = _cut(order, batch_size * processes, drop_last)
    return DataLoader(
        _Images(samples, transform, key, cache),
        batch_sampler=[_part(batch, rank, processes) for batch in batches],
        num_workers=workers,
        collate_fn=collate,
        # Or the loader would draw from the global generator, and move dropout with it.
        generator=generator,
    )


def _cut(order: list[int], whole: int, drop_last: bool) -> list[list[int]]:
    """Cut an epoch into batches; the last one may be shorter, or is left out."""
    batches = [order[i : i + whole] for i in range(0, len(order), whole)]
    return batches[:-1] if drop_last and batches and len(batches[-1]) < whole else batches


def _repeated(order: list[int], repeats: int) -> list[int]:
    """Take each image several times in a row, as far as an epoch goes; copies are told apart."""
    images = len(order)
    return [i + copy * images for i in order for copy in range(repeats)][:images]


def _part(batch: list[int], rank: int, processes: int) -> list[int]:
    start = sum(share(len(batch), r, processes) for r in range(rank))
    return batch[start : start + share(len(batch), rank, processes)] or batch[:1]


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the three generators that torchvision and timm draw from, and put them back."""
    kept, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(numpy)

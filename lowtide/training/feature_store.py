"""Features in a folder, where later runs find them: of one frozen part, one row for each image."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from ..core.graft import Graft
from ..data import Preprocessing, Sample, Transform, loader
from ..errors import InputError
from ..families import classifiers
from ..paths import read_json, write_text
from ..tuning.fingerprint import architecture
from ..tuning.side_execution import FEATURE
from ..tuning.tuned import Tuned
from .feature_cache import device_of, features, trained_part, within
from .split import file_hashes

FEATURES = "features"
"""Where a run keeps its own, in its folder."""
ROWS, INDEX, ABOUT = "rows.f32", "index.json", "about.json"


class FeatureStore:
    """Rows of float32 numbers by the hash of an image's file: 4 `width` bytes an image.

    Rows are only ever added, and counted once they are on the disk: a run that is killed while it
    adds leaves none of them. One process at a time adds; others wait for it.

    Attributes:
        folder: Named by the hash of all that the features depend on beside the image.
        width: Numbers in a row.
    """

    def __init__(self, root: Path, about: Mapping[str, object], width: int) -> None:
        """Find the folder of such features, or make it.

        Args:
            root: Holds such folders.
            about: All that the features depend on beside the image; plain JSON.
            width: Numbers in a row.
        """
        said = json.dumps({**about, "width": width}, sort_keys=True, indent=2)
        self.folder = root / hashlib.sha256(said.encode()).hexdigest()[:16]
        self.width = width
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / ABOUT, said + "\n")

    @contextmanager
    def adding(self) -> Iterator[dict[str, int]]:
        """Hold the lock under which rows are added.

        Yields:
            The row of each image that is known, by the hash of its file.
        """
        with FileLock(self.folder / "lock"):
            yield self._index()

    def add(self, images: Sequence[str], known: dict[str, int], rows: Iterable[Tensor]) -> None:
        """Add rows; only within `adding`.

        Args:
            images: Hashes of files that are not known.
            known: What `adding` gave; the new ones are put into it.
            rows: Their features `(B, width)`, batch by batch, in that order.
        """
        path, start = self.folder / ROWS, len(known)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(4 * self.width * start)  # what a killed run left behind them
            file.seek(0, os.SEEK_END)
            for batch in rows:
                file.write(batch.float().cpu().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        known |= {image: start + i for i, image in enumerate(images)}
        write_text(self.folder / INDEX, json.dumps(known) + "\n")

    def read(self, count: int) -> NDArray[np.float32]:
        """Map the first rows into memory.

        Args:
            count: How many; at least one.

        Returns:
            `(count, width)`, read from the disk where it is looked at.
        """
        return np.memmap(self.folder / ROWS, np.float32, "r", shape=(count, self.width))

    def _index(self) -> dict[str, int]:
        """Read which image has which row, if the rows are there."""
        if not (self.folder / INDEX).is_file():
            return {}
        known = read_json(self.folder / INDEX)
        rows = self.folder / ROWS
        held = rows.stat().st_size if rows.is_file() else 0
        numbered = isinstance(known, dict) and set(known.values()) == set(range(len(known)))
        if not numbered or held < 4 * self.width * len(known):
            raise InputError(f"{self.folder} is damaged: remove it, and its features are made anew")
        return known


class Features:
    """Features of images, computed once each and kept in files.

    One row of float32 numbers per image, the outputs of `constant_outputs` one after another: for a
    classifier alone C numbers, for a side network `(depth + 1) N C`. It stands in for
    `lowtide.data.Cache`: what a loader decodes is looked up here.
    """

    def __init__(
        self, tuned: Tuned, preprocessing: Preprocessing, folder: Path, keep: Path | None = None
    ) -> None:
        """Find out what can be kept.

        Args:
            tuned: The model.
            preprocessing: What images go through.
            folder: The run's; they are kept in it until `drop`.
            keep: Where to keep them for later runs as well, instead.

        Raises:
            InputError: The method changes the backbone from its first layer on, or features are to
                be kept for others that are not the backbone's own.
        """
        self.model, (self.width,) = trained_part(tuned)
        if keep is not None and _grafted(tuned, self.model.shapes):
            raise InputError("keep_features: a method stands in the layers that do not change")
        self._own = folder / FEATURES if keep is None else None
        about = {
            "backbone": architecture(tuned.model),
            "sha256": tuned.base_sha256,
            "frozen_dtype": tuned.frozen_dtype,
            "outputs": {name: list(shape) for name, shape in self.model.shapes.items()},
            "preprocessing": preprocessing.to_dict(),
            "device": device_of(tuned).type,
            "versions": {p: version(p) for p in ("lowtide", "torch", "timm")},
        }
        self._store = FeatureStore(keep or folder / FEATURES, about, self.width)
        self._rows: dict[Path, int] = {}

    def fill(
        self, samples: Sequence[Sample], transform: Transform, batch_size: int, workers: int
    ) -> None:
        """Compute the features of images that have none yet.

        Args:
            samples: The images.
            transform: What they go through; nothing in it is random.
            batch_size: Images at a time.
            workers: Processes that load them.
        """
        new = list({s.path: s for s in samples if s.path not in self._rows}.values())
        if not new:
            return
        hashes = file_hashes(s.path for s in new)
        with self._store.adding() as known:
            missing = {h: s for h, s in zip(hashes, new, strict=True) if h not in known}
            if missing:
                images = loader(
                    list(missing.values()), transform, batch_size, shuffle=False, workers=workers
                )
                self._store.add(list(missing), known, self._computed(images))
        self._rows |= {s.path: known[h] for h, s in zip(hashes, new, strict=True)}
        self._file = self._store.read(len(known))

    def _computed(self, batches: Iterable[Any]) -> Iterator[Tensor]:
        tuned = self.model.tuned
        with torch.no_grad():
            for images, _ in batches:
                given = features(tuned, self.model.shapes, images.to(device_of(tuned)))
                yield torch.cat([given[n].float().flatten(1) for n in given], 1)

    def drop(self) -> None:
        """Remove the files, if they are for this run alone."""
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)

    def load(self, path: Path, transform: Any) -> Tensor:
        """Look the features of an image up.

        Args:
            path: The image.
            transform: Not asked.

        Returns:
            `(width,)`, float32.
        """
        return torch.from_numpy(self._file[self._rows[path]].copy())


def _grafted(tuned: Tuned, names: Iterable[str]) -> bool:
    """Whether a graft stands in what gives these outputs, though nothing in it trains."""
    chain = tuned.family.chain(tuned.backbone)
    inside = chain if FEATURE in names else tuple(p for p in chain if p in names)
    last = chain.index(inside[-1]) + 1 if inside else 0
    learnt = (*chain[last:], *classifiers(tuned.backbone))
    grafts = (p for p, m in tuned.backbone.named_modules() if isinstance(m, Graft))
    return any(not within(p, learnt) for p in grafts)


class FeatureTransform:
    """The transform of images whose features are looked up."""

    random = False

    def after_cache(self, features: Any) -> Tensor:
        """Return the features unchanged.

        Args:
            features: What `Features.load` gives.

        Returns:
            The same.
        """
        return features

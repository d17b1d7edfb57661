"""The images of each split of a run, written down and not drawn again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..data import Dataset, Sample
from ..data.dataset import relative
from ..errors import InputError
from ..paths import write_text

SPLIT = "split.json"
SPLITS = ("train", "val", "test")
Images = Mapping[str, tuple[str, str]]
"""Class and SHA-256 of each image file by its path, relative to the data's root."""


@dataclass(frozen=True)
class Split:
    """The images of a run.

    A folder that changes is split anew by whoever reads it, and images a run has learnt from may
    then lie in its test. So a run keeps its split, and what is scored is held against it.

    Attributes:
        images: Those of each split: what was learnt from is `train`, whatever the data call it.
    """

    images: Mapping[str, Images]

    @classmethod
    def of(cls, dataset: Dataset) -> Split:
        """Record the splits of a data set before training.

        Args:
            dataset: The data set; every file is read once.

        Returns:
            Its split.
        """
        return cls({
            which: {
                relative(s.path, dataset.root): (dataset.text(s.label), content)
                for s, content in zip(samples, file_hashes(s.path for s in samples), strict=True)
            }
            for which, samples in dataset.splits.items()
        })

    @classmethod
    def read(cls, folder: Path) -> Split | None:
        """Read what `write` wrote.

        Args:
            folder: A run folder.

        Returns:
            The split; None where a run of an earlier version kept none.

        Raises:
            InputError: The file is damaged.
        """
        path = folder / SPLIT
        if not path.is_file():
            return None
        try:
            splits = json.loads(path.read_text(encoding="utf-8"))
            return cls({
                which: {name: _pair(*values) for name, values in splits[which].items()}
                for which in SPLITS
            })
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise InputError(f"{path} is damaged: it holds no split of images") from e

    def write(self, folder: Path) -> None:
        """Write the split into a run folder, an image a line.

        Args:
            folder: The run folder.
        """
        splits = (
            f"{json.dumps(which)}: {{\n"
            + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in images.items())
            + "\n}"
            for which, images in self.images.items()
        )
        write_text(folder / SPLIT, "{\n" + ",\n".join(splits) + "\n}\n")

    def differences(self, now: Split) -> list[str]:
        """Describe how the images have changed since.

        Args:
            now: The split of the data as they are.

        Returns:
            A phrase for each kind of change; none if the splits are the same.
        """
        was, is_ = self._by_path(), now._by_path()
        kinds = {
            "gone": [p for p in was if p not in is_],
            "changed": [p for p in was if p in is_ and was[p][1:] != is_[p][1:]],
            "new": [p for p in is_ if p not in was],
            "in another split": [p for p in was if p in is_ and was[p][0] != is_[p][0]],
        }
        return [f"{_counted(paths)} {kind}" for kind, paths in kinds.items() if paths]

    def select(self, dataset: Dataset, which: str) -> tuple[list[Sample], list[str]]:
        """Choose a split's images from the run's own data as they are now.

        Args:
            dataset: The run's data, read anew; how it is split does not matter.
            which: `train`, `val`, `test` or `all`.

        Returns:
            The images that are what they were, those that were renamed too, and what is to be said
            of the others, all left out.
        """
        now = _by_relative_path(dataset)
        wanted = {
            path: value
            for split in SPLITS
            if which in {split, "all"}
            for path, value in self.images[split].items()
        }
        new = [path for path in now if path not in self._by_path()]
        renamed = self._renamed([p for p in wanted if p not in now], new, now, dataset)
        now |= {was: now[is_] for was, is_ in renamed.items()}
        there = [path for path in wanted if path in now]
        contents = file_hashes(now[path].path for path in there)
        found = {
            path: (dataset.text(now[path].label), content)
            for path, content in zip(there, contents, strict=True)
        }
        left = {
            "are gone": [p for p in wanted if p not in now],
            "have changed": [p for p in there if found[p][1] != wanted[p][1]],
            "have another label": [
                p for p in there if found[p][1] == wanted[p][1] and found[p][0] != wanted[p][0]
            ],
        }
        notes = [
            f"{_counted(paths)} of the {len(wanted)} images {_kind(which)} {became} since the run"
            " and left out"
            for became, paths in left.items()
            if paths
        ]
        if renamed:
            notes.append(f"{_counted(list(renamed))} were renamed since the run and are scored")
        if new := [p for p in new if p not in renamed.values()]:
            notes.append(
                f"{_counted(new)} new, in no split of the run, and left out;"
                " give them as --data to score them"
            )
        return [now[p] for p in there if found[p] == wanted[p]], notes

    def _renamed(
        self,
        gone: Sequence[str],
        new: Sequence[str],
        now: Mapping[str, Sample],
        dataset: Dataset,
    ) -> dict[str, str]:
        """Find images that are gone under new names: the same bytes with the same label."""
        if not gone or not new:
            return {}
        by_content: dict[tuple[str, str], list[str]] = {}
        for path, content in zip(new, file_hashes(now[p].path for p in new), strict=True):
            by_content.setdefault((dataset.text(now[path].label), content), []).append(path)
        known, found = self._by_path(), {}
        for path in gone:
            if others := by_content.get(known[path][1:]):
                found[path] = others.pop(0)
        return found

    def holds(self, dataset: Dataset) -> bool:
        """Tell whether a data set holds at least half of the run's own images.

        Args:
            dataset: Any data.

        Returns:
            Whether half of the run's images or more lie there, under the same relative paths.
        """
        own, now = self._by_path(), _by_relative_path(dataset)
        there = [path for path in own if path in now]
        if 2 * len(there) < len(own):  # without reading a file
            return False
        contents = file_hashes(now[path].path for path in there)
        same = sum(own[p][2] == content for p, content in zip(there, contents, strict=True))
        return 2 * same >= len(own) > 0

    def unseen(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Separate images by whether the run has trained on the same file.

        Args:
            samples: Any images.

        Returns:
            Those it has not learnt from, and those it has.
        """
        learnt = {content for _, content in self.images["train"].values()}
        parts: tuple[list[Sample], list[Sample]] = ([], [])
        contents = file_hashes(s.path for s in samples)
        for sample, content in zip(samples, contents, strict=True):
            parts[content in learnt].append(sample)
        return parts

    def _by_path(self) -> dict[str, tuple[str, str, str]]:
        return {p: (which, *v) for which, images in self.images.items() for p, v in images.items()}


def _by_relative_path(dataset: Dataset) -> dict[str, Sample]:
    return {relative(s.path, dataset.root): s for s in dataset.samples("all")}


def _pair(label: str, content: str) -> tuple[str, str]:
    if not (isinstance(label, str) and isinstance(content, str)):
        raise TypeError
    return label, content


def _kind(which: str) -> str:
    return "of the run" if which == "all" else f"of its {which} split"


def _counted(paths: Sequence[str]) -> str:
    return f"{len(paths)} (first {paths[0]!r})"


def file_hashes(paths: Iterable[Path]) -> list[str]:
    """Hash files, in threads.

    Args:
        paths: The files.

    Returns:
        SHA-256 of each.
    """
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(_content, paths))


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

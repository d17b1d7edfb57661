"""A labelled set of images, read and checked once at the door."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..targets import KINDS, Label


class Sample(NamedTuple):
    """One image file and the index of its class, or a number for each output of a model."""

    path: Path
    label: Label


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three lists of samples over one set of classes, or of other targets.

    Attributes:
        train: Samples to learn from.
        val: Samples to select on; empty if the source says so.
        test: Samples to report on; empty if the source has none.
        classes: Names of classes, a label is an index into them; of the labels an image may have
            several of; or of the number.
        fingerprint: SHA-256 of which files (path and size) carry which class in which split.
        format: The kind of source it was read from.
        root: The folder that paths are relative to.
        notes: How the splits came about and what was ignored, one sentence each.
        skipped: Images that were dropped because they cannot be read.
        bits: How many bits its 16-bit pixels use; 16 where it has none.
        task: What a label is, by the name of the task that learns it.
    """

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    classes: tuple[str, ...]
    fingerprint: str
    format: str
    root: Path
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    bits: int = 16
    task: str = "classify"

    @property
    def splits(self) -> dict[str, tuple[Sample, ...]]:
        """The three lists by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def samples(self, which: str) -> list[Sample]:
        """List a split.

        Args:
            which: `train`, `val`, `test` or `all`.

        Returns:
            Its samples.
        """
        return [s for name, part in self.splits.items() if which in (name, "all") for s in part]

    def text(self, label: Label) -> str:
        """Write a label.

        Args:
            label: Of one of the samples.

        Returns:
            The name of its class, or what else stands for it in records.
        """
        return KINDS[self.task].text(self.classes, label)

    def describe(self) -> dict[str, object]:
        """Summarise for the run record.

        Returns:
            What JSON can hold: format, counts, classes, fingerprint, notes, skipped images,
            bits.
        """
        return {
            "format": self.format,
            **{which: len(part) for which, part in self.splits.items()},
            "classes": list(self.classes),
            "fingerprint": self.fingerprint,
            "notes": list(self.notes),
            "skipped": list(self.skipped),
            "bits": self.bits,
        }


def fingerprint(
    root: Path,
    splits: Mapping[str, Sequence[Sample]],
    classes: Sequence[str],
    task: str = "classify",
) -> str:
    """Hash which files carry which class in which split, by path and size, not by content.

    Independent of where the folder lies and of the order of the samples; needs one `stat` a file.

    Args:
        root: The folder that paths are taken relative to.
        splits: The samples of each split.
        classes: Class names.
        task: What a label is.

    Returns:
        A SHA-256 in hexadecimal.
    """
    text = KINDS[task].text
    lines = sorted(
        "\0".join((which, relative(path, root), text(classes, label), str(path.stat().st_size)))
        for which, samples in splits.items()
        for path, label in samples
    )
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()


def relative(path: Path, root: Path) -> str:
    """Write a path relative to a folder, the same on every system.

    Args:
        path: A file, below the folder or not.
        root: The folder.

    Returns:
        The relative path, with forward slashes.
    """
    return Path(os.path.relpath(path, root)).as_posix()

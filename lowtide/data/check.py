"""Look at a source before training on it: what is there, what is wrong, nothing raised for it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import InputError
from .dataset import Dataset, Sample, relative
from .formats import find
from .images import decode, formats
from .labels import order
from .reading import read


@dataclass(frozen=True)
class Copies:
    """Files that show the same image.

    Attributes:
        same: `bytes` if the files are equal, `pixels` if only the decoded images are.
        paths: The files, relative to the source.
        splits: The splits they lie in.
        classes: The classes they carry.
    """

    same: str
    paths: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """Findings about a source; splits are those that a run with seed 0 would use.

    Attributes:
        format: The kind of source.
        root: The folder that paths are relative to.
        fingerprint: As in a run's record.
        splits: Images in each split.
        classes: Images of each class in train, or in a set without train in all of it.
        imbalance: Largest class over smallest, of those that have an image.
        widths: Smallest and largest width, in pixels.
        heights: Smallest and largest height.
        modes: Images by PIL's pixel mode, such as `RGB`, `L` or `P`.
        across: Copies that lie in several splits.
        within: Copies that lie in one split.
        contradictory: Copies, of either kind, that carry several classes.
        unreadable: Images that cannot be decoded, and why.
        task: The published task that this claims to be.
        differences: Where it differs from what was published.
        notes: How the splits came about and what was ignored.
        values: Smallest and largest, where images have numbers instead of classes.
    """

    format: str
    root: str
    fingerprint: str
    splits: dict[str, int]
    classes: dict[str, int]
    imbalance: float
    widths: tuple[int, int]
    heights: tuple[int, int]
    modes: dict[str, int]
    across: tuple[Copies, ...]
    within: tuple[Copies, ...]
    contradictory: tuple[Copies, ...]
    unreadable: tuple[str, ...]
    task: str | None
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    values: tuple[float, float] | None = None

    def lines(self) -> list[str]:
        """Write the findings in a few lines.

        Returns:
            What a person should know, the worst last.
        """
        said = [
            f"{self.format} in {self.root}",
            "images: " + ", ".join(f"{which} {n}" for which, n in self.splits.items()),
            self._targets(),
            f"size: {_range(self.widths)} x {_range(self.heights)} pixels; "
            + ", ".join(f"{mode} {n}" for mode, n in self.modes.items()),
        ]
        said += [f"note: {note}" for note in self.notes]
        if self.task:
            said += [f"differs: {text}" for text in self.differences] or [
                f"{self.task}: classes and sizes are as published"
            ]
        for name, copies in (
            ("copies within a split", self.within),
            ("copies across splits", self.across),
            ("copies of several classes", self.contradictory),
        ):
            said.append(f"{name}: {_first([' = '.join(c.paths) for c in copies])}")
        return [*said, f"unreadable: {_first(self.unreadable)}"]

    def _targets(self) -> str:
        if self.values is not None:
            return f"values: {self.values[0]:g} to {self.values[1]:g}"
        counts = {name: n for name, n in self.classes.items() if n}
        large, small = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        return (
            f"classes: {len(self.classes)}; largest {large} ({counts[large]}), "
            f"smallest {small} ({counts[small]}), ratio {self.imbalance:.1f}"
        )


def check(source: Path | str, *, task: str = "classify", target: str | None = None) -> Findings:
    """Read a source and look at every image of it.

    Args:
        source: Anything that `read` takes, and sets without train.
        task: What is learnt of an image, as for `read`.
        target: The columns of a table that hold it, as for `read`.

    Returns:
        What was found.

    Raises:
        InputError: It cannot be read at all.
    """
    listing = find(source, task)
    entries = listing.entries
    trains = listing.splits.keys() & {"train", "all"}
    given = trains or task != "classify"
    classes = None if given else listing.classes or order(entry.label for entry in entries)
    data = read(source, skip_bad_images=True, classes=classes, task=task, target=target)
    paths = [sample.path for sample in data.samples("all")]
    if not paths:
        raise InputError(f"{source}: none of its {len(entries)} images can be read")
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        looks = dict(zip(paths, pool.map(_look, paths, repeat(data.bits)), strict=True))
    copies = _copies(data, looks)
    counted = data.train or (*data.val, *data.test)
    counts = _counts(data, counted)
    numbers = [float(data.text(s.label)) for s in counted] if task == "regress" else []
    widths, heights = zip(*(look.size for look in looks.values()), strict=True)
    return Findings(
        format=data.format,
        root=str(data.root),
        fingerprint=data.fingerprint,
        splits={which: len(part) for which, part in data.splits.items()},
        classes={} if numbers else {name: counts[name] for name in data.classes},
        imbalance=max(counts.values()) / min(counts.values()) if counts else 1.0,
        widths=(min(widths), max(widths)),
        heights=(min(heights), max(heights)),
        modes=dict(Counter(look.mode for look in looks.values()).most_common()),
        across=tuple(c for c in copies if len(c.splits) > 1),
        within=tuple(c for c in copies if len(c.splits) == 1),
        contradictory=tuple(c for c in copies if len(c.classes) > 1),
        unreadable=data.skipped,
        task=listing.task.name if listing.task else None,
        differences=listing.differences(),
        notes=tuple(note for note in data.notes if note not in listing.differences()),
        values=(min(numbers), max(numbers)) if numbers else None,
    )


def _counts(data: Dataset, samples: Sequence[Sample]) -> Counter[str]:
    """Count the images of each class, or of each label."""
    if data.task == "multilabel":
        labels = [s.label for s in samples if isinstance(s.label, tuple)]
        return Counter(
            name for label in labels for name, has in zip(data.classes, label, strict=True) if has
        )
    return Counter(data.text(s.label) for s in samples) if data.task == "classify" else Counter()


class _Look(NamedTuple):
    file: bytes
    pixels: bytes
    size: tuple[int, int]
    mode: str


def _look(path: Path, bits: int) -> _Look:
    with Image.open(path, formats=formats()) as file:
        mode = file.mode
    image = decode(path, bits=bits)
    pixels = hashlib.sha256(str(image.size).encode() + image.tobytes()).digest()
    return _Look(hashlib.sha256(path.read_bytes()).digest(), pixels, image.size, mode)


def _copies(data: Dataset, looks: Mapping[Path, _Look]) -> list[Copies]:
    groups = defaultdict(list)
    for which, samples in data.splits.items():
        for path, label in samples:
            groups[looks[path].pixels].append((path, which, data.text(label)))
    return [
        Copies(
            same="bytes" if len({looks[path].file for path, _, _ in group}) == 1 else "pixels",
            paths=tuple(relative(path, data.root) for path, _, _ in group),
            splits=tuple(dict.fromkeys(which for _, which, _ in group)),
            classes=tuple(dict.fromkeys(label for _, _, label in group)),
        )
        for group in groups.values()
        if len(group) > 1
    ]


def _range(values: tuple[int, int]) -> str:
    low, high = values
    return str(low) if low == high else f"{low}-{high}"


def _first(found: Sequence[str]) -> str:
    more = "; ..." if len(found) > 3 else ""
    return f"{len(found)} ({'; '.join(found[:3])}{more})" if found else "none"

"""Look at dense labels before training on them: what is there, what is wrong, nothing raised."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from ...errors import InputError
from ..check import Copies
from ..dataset import relative
from ..division import divide
from ..listing import SPLITS
from .faults import FAULTS
from .formats import find
from .listing import Kind, objects_of
from .objects import AnnotatedImage
from .survey import Survey, survey

SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}
"""COCO's sizes of objects: the area in pixels, of the box here, below which each ends."""


MOST = 40
"""Classes that are printed, each on a line; JSON has all."""


@dataclasses.dataclass(frozen=True)
class DenseFindings:
    """Findings about a source; splits are those that a run with seed 0 would use.

    Attributes:
        format: The kind of source.
        kind: What its labels are at their richest.
        root: The folder that paths are relative to.
        splits: Images in each split that can be read.
        objects: Objects in each split; none for semantic masks.
        classes: Objects of each class in each split, for semantic masks the pixels.
        absent: Classes of which no split has anything.
        empty: Images without an object in each split.
        sizes: Objects of each of COCO's sizes, by the area of the box.
        widths: Smallest and largest width of an image, in pixels.
        heights: Smallest and largest height.
        across: Equal files in several splits.
        within: Equal files in one split.
        faults: What is wrong, by kind: each place.
        notes: How the splits came about and what was passed over.
    """

    format: str
    kind: Kind
    root: str
    splits: dict[str, int]
    objects: dict[str, int]
    classes: dict[str, dict[str, int]]
    absent: tuple[str, ...]
    empty: dict[str, int]
    sizes: dict[str, int]
    widths: tuple[int, int]
    heights: tuple[int, int]
    across: tuple[Copies, ...]
    within: tuple[Copies, ...]
    faults: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Write the findings in a few lines.

        Returns:
            What a person should know, the worst last.
        """
        what = "pixels" if self.kind == "semantic" else "objects"
        said = [
            f"{self.format} in {self.root}: {self.kind}",
            f"images: {_counted(self.splits)}",
            f"size: {_range(*self.widths)} x {_range(*self.heights)} pixels",
            f"classes: {len(self.classes)}",
            *(f"  {name}: {what} {_counted(n)}" for name, n in islice(self.classes.items(), MOST)),
        ]
        if len(self.classes) > MOST:
            said.append(f"  ... and {len(self.classes) - MOST} more, see --json")
        if self.kind != "semantic":
            said.insert(2, f"objects: {_counted(self.objects)}; {_counted(self.sizes)}")
            said.append(f"images without objects: {_counted(self.empty)}")
        said += [f"note: {note}" for note in self.notes]
        if self.absent:
            said.append(f"classes without {what}: {_first(self.absent)}")
        for name, copies in (("within a split", self.within), ("across splits", self.across)):
            said.append(f"copies {name}: {_first([' = '.join(c.paths) for c in copies])}")
        said += [
            f"{kind}: {_first(self.faults[kind])} ({FAULTS[kind]})"
            for kind in reversed(FAULTS)
            if kind in self.faults
        ]
        return said if self.faults else [*said, "faults: none"]


def check(source: Path | str, kind: Kind | None = None) -> DenseFindings:
    """Read dense labels and look at every image and mask.

    Args:
        source: Anything that `read` takes.
        kind: What would be learnt; by default the richest.

    Returns:
        What was found.

    Raises:
        InputError: It cannot be read at all.
    """
    listing = find(source, kind)
    seen = survey(listing)
    if not seen.sizes:
        raise InputError(f"{source}: none of its images can be read ({listing.format})")
    splits, notes = divide(seen.listing.splits, seen.listing.root)
    splits = {which: splits[which] for which in SPLITS if splits.get(which)}
    classes = _classes(seen, splits)
    faults = defaultdict(list)
    for fault in seen.faults:
        faults[fault.kind].append(fault.where)
    copies = _copies(listing.root, splits)
    sized = Counter(_size(o.box) for o in objects_of(splits))
    heights, widths = zip(*seen.sizes.values(), strict=True)
    return DenseFindings(
        format=listing.format,
        kind=listing.kind,
        root=str(listing.root),
        splits={which: len(part) for which, part in splits.items()},
        objects={which: sum(len(i.objects) for i in part) for which, part in splits.items()},
        classes=classes,
        absent=tuple(name for name, parts in classes.items() if not any(parts.values())),
        empty={which: sum(not i.objects for i in part) for which, part in splits.items()},
        sizes={name: sized[name] for name in SIZES},
        widths=(min(widths), max(widths)),
        heights=(min(heights), max(heights)),
        across=tuple(c for c in copies if len(c.splits) > 1),
        within=tuple(c for c in copies if len(c.splits) == 1),
        faults={kind: tuple(found) for kind, found in faults.items()},
        notes=(*listing.notes, *seen.notes, *notes),
    )


def _classes(
    seen: Survey, splits: Mapping[str, Sequence[AnnotatedImage]]
) -> dict[str, dict[str, int]]:
    """Count objects, or pixels of masks, of each class in each split."""
    counts = {name: dict.fromkeys(splits, 0) for name in seen.classes}
    for which, part in splits.items():
        for image in part:
            for o in image.objects:
                counts[o.label][which] += 1
            stored = seen.pixels[image.mask] if image.mask is not None else ()
            for number, pixels in zip(seen.values, stored, strict=False):
                if number < len(seen.classes):
                    counts[seen.classes[number]][which] += int(pixels)
    return counts


def _size(box: tuple[float, float, float, float]) -> str:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return next(name for name, most in SIZES.items() if area < most)


def _copies(root: Path, splits: Mapping[str, Sequence[AnnotatedImage]]) -> list[Copies]:
    listed = [(image.path, which) for which, part in splits.items() for image in part]
    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(_content, (path for path, _ in listed)))
    groups = defaultdict(list)
    for content, (path, which) in zip(contents, listed, strict=True):
        groups[content].append((relative(path, root), which))
    return [
        Copies(
            same="bytes",
            paths=tuple(path for path, _ in group),
            splits=tuple(dict.fromkeys(which for _, which in group)),
            classes=(),
        )
        for group in groups.values()
        if len(group) > 1
    ]


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _first(found: Sequence[str]) -> str:
    more = "; ..." if len(found) > 3 else ""
    return f"{len(found)} ({'; '.join(found[:3])}{more})" if found else "none"

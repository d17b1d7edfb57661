"""Images with dense labels, read and checked once at the door, decoded when they are asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from ...errors import InputError, shown
from ..dataset import Dataset, Sample, relative
from ..images import decode
from .listing import Kind
from .masks import IGNORE, read_mask, translate
from .objects import AnnotatedImage, Annotation, Polygons
from .runs import Runs

BACKGROUND = "background"
"""What pixels are that no object of instances covers."""
Target = dict[str, Any]
Item = tuple[tv_tensors.Image, Target]


@dataclasses.dataclass(frozen=True)
class DenseSplit(Sequence[Item]):
    """One split: a sequence of `(image, target)`, each decoded anew.

    The image is uint8 `(3, H, W)`. A target holds `image_id` (COCO's, or else the position),
    `path`, and

    - `boxes` and `instances`: `boxes` (XYXY in pixels, float32 `(n, 4)`), `labels` (int64 `(n,)`,
      from 0), `iscrowd` (bool as int64 `(n,)`: neither trained on nor counted as missed) and
      `area` (float32 `(n,)`, of the mask where there is one, else of the box);
    - `instances`: `masks` (uint8 `(n, H, W)`);
    - `semantic`: `mask` (int64 `(H, W)`, 255 is ignored).

    Attributes:
        images: What is labelled.
        classes: Names; a label is an index into them.
        kind: What the targets hold.
        values: For semantic masks, the class of each stored value.
        bits: How many bits 16-bit pixels use.
        transform: Applied to image and target; see `transforms`.
    """

    images: tuple[AnnotatedImage, ...]
    classes: tuple[str, ...]
    kind: Kind
    values: np.ndarray
    bits: int = 16
    transform: Callable[[tv_tensors.Image, Target], Item] | None = None

    def with_transform(self, transform: Callable[[tv_tensors.Image, Target], Item]) -> DenseSplit:
        """Transform every item.

        Args:
            transform: Takes and gives an image and a target.

        Returns:
            The same split otherwise.
        """
        return dataclasses.replace(self, transform=transform)

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> DenseSplit: ...

    def __getitem__(self, index: int | slice) -> Item | DenseSplit:
        if isinstance(index, slice):
            return dataclasses.replace(self, images=self.images[index])
        image = self.images[index]
        pixels = tv_tensors.Image(functional.pil_to_tensor(decode(image.path, bits=self.bits)))
        height, width = pixels.shape[-2:]
        number = image.number if image.number >= 0 else index % len(self.images)
        target: Target = {"image_id": number, "path": str(image.path)}
        if self.kind == "semantic":
            target["mask"] = tv_tensors.Mask(torch.from_numpy(self._semantic(image, height, width)))
        else:
            target |= self._objects(image, height, width)
        return self.transform(pixels, target) if self.transform else (pixels, target)

    def _objects(self, image: AnnotatedImage, height: int, width: int) -> Target:
        index = {name: number for number, name in enumerate(self.classes)}
        boxes = torch.tensor([o.box for o in image.objects], dtype=torch.float32).reshape(-1, 4)
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(
                boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(height, width)
            ),
            "labels": torch.tensor([index[o.label] for o in image.objects], dtype=torch.int64),
            "iscrowd": torch.tensor([int(o.crowd) for o in image.objects], dtype=torch.int64),
            "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        }
        if self.kind == "instances":
            masks = np.zeros((len(image.objects), height, width), dtype=np.uint8)
            for mask, o in zip(masks, image.objects, strict=True):
                mask[:] = _paint(o, height, width)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
            target["area"] = target["masks"].sum((1, 2), dtype=torch.float32)
        return target

    def _semantic(self, image: AnnotatedImage, height: int, width: int) -> np.ndarray:
        if image.mask is not None:
            return translate(read_mask(image.mask), self.values)
        index = {name: number for number, name in enumerate(self.classes)}
        ground = index[BACKGROUND]
        found = np.full((height, width), ground, dtype=np.int64)
        for o in image.objects:
            inside, label = _paint(o, height, width).astype(bool), index[o.label]
            # Two classes claim such a pixel, and the file does not say which is in front.
            contested = inside & (found != ground) & (found != label)
            found[inside] = label
            found[contested] = IGNORE
        return found


def _relabelled(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Give each stored value another class; what is ignored stays so."""
    known = values != IGNORE
    return np.where(known, labels[np.where(known, values, 0)], IGNORE)


def _paint(o: Annotation, height: int, width: int) -> np.ndarray:
    assert o.shape is not None
    return o.shape.paint(height, width)


@dataclasses.dataclass(frozen=True)
class DenseFolder:
    """Splits of images with dense labels over one set of classes.

    Attributes:
        classes: Names; a label is an index into them. For boxes and instances there is no
            background among them; for semantic masks it is one of them, if the masks have one.
        kind: What the targets hold: `boxes`, `instances` or `semantic`.
        splits: `train`, `val` and `test`, as far as they are there.
        format: The kind of source it was read from.
        root: The folder that paths are relative to.
        fingerprint: SHA-256 of which files (path and size) carry which labels in which split.
        notes: How the splits came about and what was dropped, one sentence each.
        skipped: Images that were left out because they cannot be read.
        bits: How many bits 16-bit pixels use; 16 where there are none.
    """

    classes: tuple[str, ...]
    kind: Kind
    splits: dict[str, DenseSplit]
    format: str
    root: Path
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    bits: int = 16

    @property
    def fingerprint(self) -> str:
        """SHA-256 of which files carry which labels in which split, in any order."""
        lines = sorted(
            f"{which}\0{relative(image.path, self.root)}\0{image.path.stat().st_size}\0{digest}"
            for which, split in self.splits.items()
            for image, digest in zip(split.images, map(_digest, split.images), strict=True)
        )
        return hashlib.sha256(
            os.fsencode("\n".join([self.kind, *self.classes, *lines]))
        ).hexdigest()

    def counting(self, names: tuple[str, ...]) -> DenseFolder:
        """Count the classes as somebody else does, who may know more of them.

        Args:
            names: Of the classes, in the order of the labels that are wanted.

        Returns:
            The same images; the same objects and pixels have the same names as before.

        Raises:
            InputError: A class is not among them.
        """
        if self.classes == names:
            return self
        if any(name not in names for name in self.classes):
            raise InputError(
                f"{self.root} has classes {shown(list(self.classes))}, and the run has learnt"
                f" {shown(list(names))}"
            )
        labels = np.array([*map(names.index, self.classes)], dtype=np.int64)
        splits = {
            which: dataclasses.replace(
                split, classes=names, values=_relabelled(split.values, labels)
            )
            for which, split in self.splits.items()
        }
        return dataclasses.replace(self, classes=names, splits=splits)

    def describe(self) -> dict[str, object]:
        """Summarise for the run record.

        Returns:
            What JSON can hold, under the names of `lowtide.data.Dataset.describe`, and `kind`.
        """
        sizes = {which: len(self.splits.get(which, ())) for which in ("train", "val", "test")}
        return {
            "format": self.format,
            "kind": self.kind,
            **sizes,
            "classes": list(self.classes),
            "fingerprint": self.fingerprint,
            "notes": list(self.notes),
            "skipped": list(self.skipped),
            "bits": self.bits,
        }

    def listed(self) -> Dataset:
        """Write the splits down as a run's split is.

        Returns:
            Each image's file with, for its class, a digest of its labels: what
            `lowtide.training.split.Split` keeps and compares.
        """
        digests = {
            which: [_digest(image) for image in split.images]
            for which, split in self.splits.items()
        }
        classes = tuple(sorted({digest for part in digests.values() for digest in part}))
        index = {digest: number for number, digest in enumerate(classes)}
        samples = {
            which: tuple(
                Sample(image.path, index[digest])
                for image, digest in zip(split.images, digests[which], strict=True)
            )
            for which, split in self.splits.items()
        }
        return Dataset(
            train=samples.get("train", ()),
            val=samples.get("val", ()),
            test=samples.get("test", ()),
            classes=classes,
            fingerprint=self.fingerprint,
            format=self.format,
            root=self.root,
            notes=self.notes,
            skipped=self.skipped,
            bits=self.bits,
        )


def _digest(image: AnnotatedImage) -> str:
    """Hash the labels of an image."""
    found = hashlib.sha256()
    for o in image.objects:
        found.update(repr((o.label, o.box, o.crowd)).encode("utf-8", "surrogateescape"))
        if isinstance(o.shape, Polygons):
            found.update(b"".join(ring.tobytes() for ring in o.shape.rings))
        elif isinstance(o.shape, Runs):
            found.update(o.shape.counts.tobytes())
        elif o.shape is not None:
            found.update(f"{o.shape.value}".encode() + o.shape.path.read_bytes())
    if image.mask is not None:
        found.update(image.mask.read_bytes())
    return found.hexdigest()[:16]

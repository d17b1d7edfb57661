"""Object detection: a box and a class for every object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..batch import Batch, untyped
from ..detectors import BACKGROUND, Detector, detector
from ..frames import Frame
from ..scores import ObjectScore
from .kind import DenseTask, Kind, Scorer, Target

OBJECTS = 8
"""Objects of each image of a plan."""


@dataclass(frozen=True)
class Detect(DenseTask):
    """A box and a class for every object; the losses are the detector's, added up.

    An image is brought into the model's square as a whole, and boxes back to the image. A box finds
    an object by the IoU of COCO; see `ObjectScore`.
    """

    task: ClassVar[str] = "detect"
    kind: ClassVar[Kind] = "boxes"
    metric: ClassVar[str] = "box_map"
    usual: ClassVar[Detector] = "fasterrcnn"
    masks: ClassVar[bool] = False

    @property
    def detector(self) -> Detector:
        """Name of the detector."""
        return self.config.detector or self.usual

    def model(self, body: nn.Module) -> nn.Module:
        """Put a detector on a backbone: a `Batch` to losses, in evaluation images to detections."""
        channels = self.config.decoder_channels
        return OnBatch(detector(body, len(self.names), self.detector, self.size, channels))

    def collate(self, samples: Sequence[tuple[Tensor, Target]]) -> tuple[Batch, Tensor]:
        """Make a `Batch`, and a zero for each image: the model itself takes the objects."""
        images = torch.stack([untyped(i) for i, _ in samples])
        return Batch(images, [self._objects(t) for _, t in samples]), torch.zeros(len(images))

    def _objects(self, target: Target) -> dict[str, Tensor]:
        found = {
            "boxes": untyped(target["boxes"]),
            "labels": target["labels"] + BACKGROUND[self.detector],
        }
        if self.masks:
            found["masks"] = untyped(target["masks"])
        return found

    def example(self, batch_size: int, shape: tuple[int, int, int]) -> tuple[Batch, Tensor]:
        """Give images with `OBJECTS` objects each: boxes of a quarter of the side, in a row."""
        height, width = shape[1:]
        starts = torch.linspace(0, 0.75, OBJECTS)
        corners = torch.stack([starts * width, starts * height], 1)
        boxes = torch.cat([corners, corners + torch.tensor([width / 4, height / 4])], 1)
        target = {
            "boxes": boxes,
            "labels": torch.zeros(OBJECTS, dtype=torch.long),
            "masks": torch.ones(OBJECTS, height, width, dtype=torch.uint8),
        }
        return self.collate([(torch.zeros(shape), target)] * batch_size)

    def loss(self, outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        """Add the detector's losses up."""
        return torch.stack([value.float() for value in outputs.values()]).sum()

    @torch.no_grad()
    def predict(self, model: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Find boxes, labels, scores, and masks where the detector gives some, best first."""
        device = next(model.parameters()).device
        frames = [Frame.of(image, self.size) for image in images]
        square = [f.put(self.normalized(i.to(device))) for f, i in zip(frames, images, strict=True)]
        found = model(Batch(torch.stack(square), ()))
        return [self._brought(f, each) for f, each in zip(frames, found, strict=True)]

    def _brought(self, frame: Frame, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring an image's objects from the square to the image."""
        own = {
            "boxes": frame.boxes(found["boxes"].float()),
            "labels": found["labels"] - BACKGROUND[self.detector],
            "scores": found["scores"].float(),
        }
        if "masks" in found:
            own["masks"] = frame.maps(found["masks"][:, 0].float()) > 0.5
        return own

    def labelled(self, target: Target) -> dict[str, Tensor]:
        """Give true boxes, labels, and masks where the detector gives some."""
        names = ("boxes", "labels", "masks") if self.masks else ("boxes", "labels")
        found = {name: untyped(target[name]) for name in names}
        return found | ({"masks": found["masks"].bool()} if self.masks else {})

    def scorer(self) -> Scorer:
        """Count objects."""
        return _Objects(self.names, self.masks)


class OnBatch(nn.Module):
    """A detector that takes a `Batch`.

    Attributes:
        detector: torchvision's model.
    """

    def __init__(self, made: nn.Module) -> None:
        """Take a detector.

        Args:
            made: torchvision's model.
        """
        super().__init__()
        self.detector = made

    def forward(self, batch: Batch) -> Any:
        """Run the detector.

        Args:
            batch: Images, and in training their objects.

        Returns:
            Losses by name in training; in evaluation for each image a mapping of `boxes`, `labels`
            and `scores`, and with Mask R-CNN `masks` `(N, 1, H, W)` between 0 and 1.
        """
        objects = [dict(o) for o in batch.objects] if self.training else None
        return self.detector(list(batch.images), objects)


class _Objects(ObjectScore, Scorer):
    def update(self, predicted: Any, target: Target) -> None:
        mine = {k: predicted[k] for k in ("boxes", "labels", "scores", "masks") if k in predicted}
        true = {
            k: target[k].as_subclass(Tensor)
            for k in ("boxes", "labels", "iscrowd", "area", "masks")
            if k in target
        }
        super().update(mine, true)


TASK = Detect

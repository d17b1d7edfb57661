"""Instance segmentation: a box, a class and a mask for every object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..detectors import Detector
from .detect import Detect
from .kind import Kind


@dataclass(frozen=True)
class Instances(Detect):
    """A box, a class and a mask for every object, by Mask R-CNN.

    A mask of the square is brought to the image by bilinear interpolation of its probabilities,
    and holds what is above one half.
    """

    task: ClassVar[str] = "instances"
    kind: ClassVar[Kind] = "instances"
    metric: ClassVar[str] = "mask_map"
    usual: ClassVar[Detector] = "maskrcnn"
    masks: ClassVar[bool] = True


TASK = Instances

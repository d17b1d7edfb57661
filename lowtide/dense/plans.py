"""Plan the memory of a training step of a dense task."""

from __future__ import annotations

import abc
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import roi_align

from ..core.method import Method
from ..families import image_shape, meta_copy
from ..planning.loss import of_outputs
from ..planning.materials import real_copy
from ..planning.simulate import Plan, set_up_step, simulate_step
from ..planning.step import StepConfig
from ..planning.trial import Trial
from ..planning.watch import UNKNOWN, rehearse_step
from ..tuning.applying import apply
from ..tuning.backbone import create
from ..tuning.tuned import Tuned
from ..versions import on_meta
from .options import TaskConfig
from .pyramid import backbone_path
from .sizes import refuse_size
from .tasks import TASKS
from .tasks.detect import OnBatch
from .tasks.kind import DenseTask

CLASSES = 2
"""Classes of a plan, where none are given."""
SAMPLED = (
    "which regions a detector learns from depends on the images: planned are the most, {regions} of"
    " each image{masked}, and not the matching of boxes"
)
DENSE_HEADS = "planned are a detector's features and heads, and not the matching of boxes"


def plan_task(task: DenseTask, body: nn.Module, method: Method, step: StepConfig) -> Plan:
    """Measure a training step that never runs.

    Args:
        task: The task.
        body: A timm backbone, which is not changed.
        method: What would train of it; the rest of the model trains whole.
        step: Batch, policy and everything else that decides a step's memory.

    Returns:
        The plan. Of a detector it is that of features and heads: what it does with boxes depends on
        the images, and a note says what is assumed.
    """
    with on_meta():
        model = task.model(meta_copy(body))
        said = ""
        if isinstance(model, OnBatch):
            model.detector = stand_in(model.detector)
            said = model.detector.note
        tuned = apply(model, method, backbone=backbone_path(model))
    shape = image_shape(body)
    learnt = Trial(lambda count: task.example(count, shape), of_outputs(task.loss), said)
    structure = meta_copy(tuned)
    try:
        return simulate_step(set_up_step(tuned, step), step, trial=learnt)
    except UNKNOWN:
        real = real_copy(structure)
        assert isinstance(real, Tuned)
        return rehearse_step(set_up_step(real, step), step, trial=learnt)


def plan_dense(
    model: str,
    method: Method,
    *,
    step: TaskConfig,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> Plan:
    """Measure a training step of a dense task that never runs.

    Args:
        model: timm's name of the backbone.
        method: What would train of it.
        step: The task, and everything else that decides a step's memory.
        num_classes: Classes of pixels or objects; by default 2.
        image_size: Side of the square images; by default the backbone's own.

    Returns:
        The plan.
    """
    with on_meta():
        body = create(model, pretrained=False, image_size=image_size)
    size = image_shape(body)[1]
    refuse_size(body, size, model)
    names = tuple(map(str, range(num_classes or CLASSES)))
    task = TASKS[step.task](names, size, (0.5,) * 3, (0.5,) * 3, step)
    return plan_task(task, body, method, step)


def stand_in(detector: nn.Module) -> StandIn:
    """Make a stand-in for a detector that does the work which does not depend on the images.

    Args:
        detector: torchvision's.

    Returns:
        A module with the same parameters.
    """
    return (RegionsStandIn if isinstance(detector, GeneralizedRCNN) else HeadsStandIn)(detector)


class StandIn(nn.Module, abc.ABC):
    """A detector on arbitrary targets.

    Attributes:
        detector: torchvision's.
        note: What is assumed.
    """

    note: str

    def __init__(self, detector: Any) -> None:
        """Take a detector.

        Args:
            detector: torchvision's.
        """
        super().__init__()
        self.detector = detector

    def forward(self, images: list[Tensor], objects: Any = None) -> dict[str, Tensor]:
        """Compute losses of arbitrary targets.

        Args:
            images: `(C, H, W)` each.
            objects: Not asked.

        Returns:
            Losses by name.
        """
        d: Any = self.detector
        batched, _ = d.transform(images)
        return self.losses(d, list(d.backbone(batched.tensors).values()))

    @abc.abstractmethod
    def losses(self, d: Any, maps: list[Tensor]) -> dict[str, Tensor]:
        """Compute losses from feature maps.

        Args:
            d: torchvision's detector.
            maps: Its feature maps.

        Returns:
            Losses by name.
        """


class RegionsStandIn(StandIn):
    """A two-stage detector on regions that are given: as many as torchvision samples at most.

    Attributes:
        regions: Regions of an image whose boxes are learnt.
        masked: Of these, those whose masks are.
    """

    def __init__(self, detector: Any) -> None:
        """Take a detector.

        Args:
            detector: torchvision's.
        """
        super().__init__(detector)
        sampler = detector.roi_heads.fg_bg_sampler
        self.regions = sampler.batch_size_per_image
        self.masked = int(self.regions * sampler.positive_fraction)
        masks = f", {self.masked} with a mask" if detector.roi_heads.has_mask() else ""
        self.note = SAMPLED.format(regions=self.regions, masked=masks)

    def losses(self, d: Any, maps: list[Tensor]) -> dict[str, Tensor]:
        """Compute losses of regions, boxes and masks."""
        found = [torch.cat([x.flatten() for x in part]) for part in d.rpn.head(maps)]
        losses = {"rpn": found[0].sigmoid().mean() + found[1].abs().mean()}
        pooled = self._pooled(d.roi_heads.box_roi_pool, maps, self.regions)
        pooled = d.roi_heads.box_head(pooled)
        scores, boxes = d.roi_heads.box_predictor(pooled)
        truth = torch.zeros(len(scores), dtype=torch.long)
        losses["boxes"] = F.cross_entropy(scores, truth) + boxes.abs().mean()
        if d.roi_heads.has_mask():
            pooled = self._pooled(d.roi_heads.mask_roi_pool, maps, self.masked)
            pooled = d.roi_heads.mask_head(pooled)
            masks = d.roi_heads.mask_predictor(pooled)
            masks = masks[torch.arange(len(masks)), torch.zeros(len(masks), dtype=torch.long)]
            losses["masks"] = F.binary_cross_entropy_with_logits(masks, torch.zeros_like(masks))
        return losses

    @staticmethod
    def _pooled(pool: Any, maps: list[Tensor], count: int) -> Tensor:
        """Pool regions; all from the finest level, which keeps as much as any other."""
        finest = maps[0]
        rows = torch.arange(len(finest)).repeat_interleave(count).to(finest.dtype)
        regions = torch.stack([rows, *(torch.full_like(rows, n) for n in (0, 0, 32, 32))], 1)
        return roi_align(finest, regions, pool.output_size, 0.25, pool.sampling_ratio)


class HeadsStandIn(StandIn):
    """A one-stage detector without its anchors."""

    note = DENSE_HEADS

    def losses(self, d: Any, maps: list[Tensor]) -> dict[str, Tensor]:
        """Compute a loss of each of the head's outputs."""
        found = d.head(maps)
        return {
            name: F.binary_cross_entropy_with_logits(value, torch.zeros_like(value))
            for name, value in found.items()
        }

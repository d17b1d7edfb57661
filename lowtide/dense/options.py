"""Options of a dense task, beside those of the training step."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from ..errors import InputError
from ..planning.step import StepConfig
from ..targets import DENSE
from ..values import Side, Width, Within
from .decoders import Decoder
from .detectors import DETECTORS, WITH_MASKS, Detector

DenseRecipe = Literal["none", "flip", "jitter", "lsj"]
"""Recipes of `lowtide.data.dense` that give images of one size."""
FOR: dict[str, tuple[str, ...]] = {
    "decoder": ("segment",),
    "dice": ("segment",),
    "window_stride": ("segment",),
    "recipe": DENSE,
    "detector": ("detect", "instances"),
    "decoder_channels": DENSE,
}
"""Which tasks an option is for."""


WITHOUT: dict[str, tuple[object, ...]] = {
    "augment": ("none",),
    "cache_features": (False,),
    "head_init": ("probe",),
    "head_lr_scale": (1.0,),
    "memory_budget": (None,),
    "mixup": (0.0,),
    "cutmix": (0.0,),
    "repeats": (1,),
}
"""Options of a run that no dense task has, at what they are where nothing is given or decided."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig(StepConfig):
    """The model around the backbone of a dense task, and how it learns.

    Attributes:
        decoder: For segment: unet, fpn, upernet or dpt; by default dpt for a plain ViT, unet for a
            backbone with maps of stride 2, upernet for others.
        detector: For detect: fasterrcnn, retinanet or fcos, by default the first; for instances
            maskrcnn.
        recipe: For dense tasks, what training does at random: none, flip, jitter (scales by 0.5 to
            2, crops, flips, distorts colours) or lsj (scales by 0.1 to 2, crops, flips).
        decoder_channels: Width of the decoder or of the detector's feature pyramid.
        dice: For segment: weight of the Dice loss beside cross-entropy; 0 leaves it out.
        window_stride: For segment: learn from crops of image_size at the images' own size, and
            score windows of image_size, this many pixels apart, whose overlaps are averaged. By
            default each image is shrunk or enlarged to image_size as a whole.
    """

    decoder: Decoder | None = None
    detector: Detector | None = None
    recipe: DenseRecipe = "flip"
    decoder_channels: Width = 256
    dice: Annotated[float, Within(0, 1e3)] = 0.0
    window_stride: Side | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        usual = {f.name: f.default for f in fields(TaskConfig)}
        for name, tasks in FOR.items():
            given: Any = getattr(self, name)
            if given != usual[name] and self.task not in tasks:
                raise InputError(f"{name} is for task {' and '.join(tasks)}, not {self.task}")
        masks = self.task == "instances"
        if self.detector is not None and (self.detector in WITH_MASKS) is not masks:
            able = [d for d in DETECTORS if (d in WITH_MASKS) is masks]
            raise InputError(
                f"detector {self.detector} finds {'boxes alone' if masks else 'masks as well'}:"
                f" expected {' or '.join(able)} for task {self.task}"
            )

    @property
    def holds_pixels(self) -> bool:
        """Whether the step is given images as uint8: where the peak lies behind the forward.

        Without checkpointing it mostly lies in it, where both are there. Mixing changes floats.
        """
        return self.checkpointing and self.task not in DENSE and not self.mixes


def refuse_beside(config: Any) -> None:
    """Refuse options of a run that would do nothing for its dense task.

    Args:
        config: The run's options.

    Raises:
        InputError: One is given.
    """
    if config.task not in DENSE:
        return
    for name, usual in WITHOUT.items():
        if getattr(config, name) not in usual:
            more = ": --recipe says what training does at random" if name == "augment" else ""
            raise InputError(f"{name} is not for task {config.task}{more}")
    if config.smoothing and config.task != "segment":
        raise InputError(f"smoothing is of class scores, and task {config.task} has a detector's")

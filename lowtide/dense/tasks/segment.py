"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from ...errors import InputError
from ...memory.policies import policy_of
from ..decoders import segmenter
from ..frames import Frame
from ..losses import IGNORE, segmentation_loss
from ..scores import PixelScore
from ..windows import slide
from .kind import DenseTask, Kind, Scorer, Target

CHUNKS = 4
"""How much larger a piece of the loss is than what a policy runs at once, which is wider inside."""


@dataclass(frozen=True)
class Segment(DenseTask):
    """A class for every pixel; see `segmentation_loss` and `PixelScore`.

    An image is brought into the model's square as a whole and its scores back to the image's own
    size, or with `window_stride` scored in windows; each pixel gets its best class then.
    """

    task: ClassVar[str] = "segment"
    kind: ClassVar[Kind] = "semantic"
    metric: ClassVar[str] = "miou"

    def __post_init__(self) -> None:
        if len(self.names) > IGNORE:
            raise InputError(f"segment learns at most {IGNORE} classes, not {len(self.names)}")
        if self.config.window_stride is not None and self.config.recipe not in ("none", "flip"):
            raise InputError(
                f"recipe {self.config.recipe} resizes images, and windows keep their own size:"
                " expected none or flip"
            )
        if self.config.window_stride is not None and self.config.window_stride > self.size:
            raise InputError(
                f"window_stride must be at most image_size ({self.size}), not"
                f" {self.config.window_stride}: pixels between two windows would have no score"
            )

    def model(self, body: nn.Module) -> nn.Module:
        """Put a decoder on a backbone: images to logits."""
        made = self.config
        return segmenter(body, len(self.names), made.decoder, made.decoder_channels)

    def transform(self, training: bool) -> Callable[..., tuple[Tensor, Target]]:
        """Make the transform of images and masks; with windows, crops of the image's own size."""
        if self.config.window_stride is None:
            return super().transform(training)
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE}
        flip = [] if self.config.recipe == "none" else [v2.RandomHorizontalFlip()]
        return v2.Compose([
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(list(self.mean), list(self.std)),
            v2.RandomCrop(self.size, pad_if_needed=True, fill=fill),
            *flip,
        ])

    @property
    def random(self) -> bool:
        """Whether training sees an image differently each time: crops are drawn."""
        return self.config.window_stride is not None or super().random

    def collate(self, samples: Sequence[tuple[Tensor, Target]]) -> tuple[Tensor, Tensor]:
        """Stack images `(B, C, size, size)` and masks `(B, size, size)`."""
        masks = [t["mask"].as_subclass(Tensor) for _, t in samples]
        return torch.stack([i.as_subclass(Tensor) for i, _ in samples]), torch.stack(masks)

    def example(self, batch_size: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Give images and masks, all 0."""
        return torch.zeros(batch_size, *shape), torch.zeros(batch_size, *shape[1:]).long()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute `segmentation_loss` of logits `(B, K, h, w)` and masks `(B, H, W)`."""
        given = self.config
        chunk = policy_of(given.policy, given.chunk).chunk
        return segmentation_loss(
            outputs,
            targets,
            smoothing=self.smoothing,
            dice=given.dice,
            most=None if chunk is None else CHUNKS * chunk,
        )

    @torch.no_grad()
    def predict(self, model: nn.Module, images: Sequence[Tensor]) -> list[Tensor]:
        """Give each pixel its best class: `(H, W)` of each image."""
        device = next(model.parameters()).device
        inputs = [self.normalized(image.to(device)) for image in images]
        stride, side = self.config.window_stride, self.size
        if stride is not None:
            many = max(1, len(images))
            return [slide(model, i, side, stride, many).float().argmax(0) for i in inputs]
        frames = [Frame.of(image, side) for image in images]
        square = torch.stack([f.put(i) for f, i in zip(frames, inputs, strict=True)])
        scores = model(square).float()
        return [f.maps(s).argmax(0) for f, s in zip(frames, scores, strict=True)]

    def labelled(self, target: Target) -> Tensor:
        """Give the true classes of pixels `(H, W)`, 255 where there is none."""
        mask: Tensor = target["mask"].as_subclass(Tensor)
        return mask

    def scorer(self) -> Scorer:
        """Count pixels."""
        return _Pixels(self.names)


class _Pixels(PixelScore, Scorer):
    def update(self, predicted: Any, target: Any) -> None:
        mask = target["mask"].as_subclass(Tensor)
        super().update(predicted, mask.to(predicted.device))


TASK = Segment

"""An image in the square a model takes: resized as a whole, its rest filled, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import resize


class Frame(NamedTuple):
    """Where an image lies in a square: at its top left, its longer side as long as the square's.

    Attributes:
        height: Of the image.
        width: Of the image.
        side: Of the square.
    """

    height: int
    width: int
    side: int

    @classmethod
    def of(cls, image: Tensor, side: int) -> Frame:
        """Compute where an image lies in its square.

        Args:
            image: `(C, H, W)`.
            side: Of the square.

        Returns:
            Its frame.
        """
        height, width = image.shape[-2:]
        return cls(height, width, side)

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the image in the square, one pixel at least."""
        scale = self.side / max(self.height, self.width)
        return max(1, round(self.height * scale)), max(1, round(self.width * scale))

    def put(self, image: Tensor) -> Tensor:
        """Put an image into the square.

        Args:
            image: `(C, H, W)`, any real numbers.

        Returns:
            `(C, side, side)`; 0 where the image is not.
        """
        height, width = self.inner
        small = resize(image, [height, width], antialias=True)
        return F.pad(small, (0, self.side - width, 0, self.side - height))

    def maps(self, maps: Tensor) -> Tensor:
        """Bring maps of the square to the image.

        Args:
            maps: `(N, side, side)`, real numbers.

        Returns:
            `(N, H, W)`, interpolated bilinearly.
        """
        height, width = self.inner
        if not len(maps):
            return maps.new_empty(0, self.height, self.width)
        cut = maps[None, :, :height, :width]
        own = (self.height, self.width)
        return F.interpolate(cut, own, mode="bilinear", align_corners=False)[0]

    def boxes(self, boxes: Tensor) -> Tensor:
        """Bring boxes of the square to the image.

        Args:
            boxes: `(N, 4)`, corners x1 y1 x2 y2.

        Returns:
            The same in pixels of the image, cut at its edges.
        """
        height, width = self.inner
        x, y = self.width / width, self.height / height
        most = torch.tensor([self.width, self.height] * 2, dtype=boxes.dtype, device=boxes.device)
        return (boxes * boxes.new_tensor([x, y, x, y])).clamp(min=0).minimum(most)

"""A batch of images with objects: what the loop cuts, moves and gives to a detector whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.tv_tensors import TVTensor


@dataclass(frozen=True)
class Batch:
    """Images and the objects in each of them.

    Attributes:
        images: `(B, C, H, W)`.
        objects: Of each image `boxes` `(n, 4)`, `labels` `(n,)`, and maybe `masks` `(n, H, W)`.
    """

    images: Tensor
    objects: Sequence[Mapping[str, Tensor]]

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.images[rows], self.objects[rows])

    def to(self, device: torch.device) -> Batch:
        """Move all tensors.

        Args:
            device: Where to.

        Returns:
            The same batch there.
        """
        objects = [{k: v.to(device) for k, v in o.items()} for o in self.objects]
        return Batch(self.images.to(device), objects)

    def tensor_split(self, parts: int) -> list[Batch]:
        """Cut into parts that differ by one image at most, as `Tensor.tensor_split` does.

        Args:
            parts: How many.

        Returns:
            The parts in order.
        """
        pieces, start, found = self.images.tensor_split(parts), 0, []
        for piece in pieces:
            found.append(Batch(piece, self.objects[start : start + len(piece)]))
            start += len(piece)
        return found


def untyped(t: Tensor) -> Tensor:
    """Give a tensor of torchvision's kinds (images, boxes, masks) as a plain one.

    Args:
        t: Any tensor. torch 2.8 makes no view of another class of a planned one.

    Returns:
        The same numbers.
    """
    return t.as_subclass(Tensor) if isinstance(t, TVTensor) else t

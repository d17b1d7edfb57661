"""How a batch is cut for gradient accumulation."""

from __future__ import annotations

from torch import Tensor


def micro_batches(images: Tensor, labels: Tensor, parts: int) -> list[tuple[Tensor, Tensor]]:
    """Cut a batch into parts that differ by one image at most, the larger ones first.

    Args:
        images: `(B, 3, H, W)`.
        labels: `(B,)`, or shares of the classes `(B, K)`.
        parts: How many, B at most.

    Returns:
        Images and labels of each.
    """
    return list(zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True))

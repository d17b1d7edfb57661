"""An activation function and the codes of its slope, of one reading of its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .bits import packed_bytes
from .threshold_codes import threshold_pack

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
}
"""Torch's functions, which say what the result is, to the last bit."""


def activation_pack_plain(
    x: Tensor, function: str, edges: Sequence[float], codes: Sequence[int], bits: int
) -> tuple[Tensor, Tensor]:
    """Define `activation_pack`: torch's function, then `threshold_pack`.

    Args:
        x: Numbers, any layout.
        function: A key of `FUNCTIONS`.
        edges: Rising.
        codes: One more than edges.
        bits: Width of a code.

    Returns:
        The function's result, and codes[number of edges below x], (bytes,).
    """
    return FUNCTIONS[function](x), threshold_pack(x, list(edges), list(codes), bits)


@torch.library.custom_op(
    "lowtide::activation_pack",
    mutates_args=(),
    schema="(Tensor x, str function, float[] edges, int[] codes, int bits) -> (Tensor, Tensor)",
)
def activation_pack(
    x: Tensor, function: str, edges: list[float], codes: list[int], bits: int
) -> tuple[Tensor, Tensor]:
    """Compute a function and keep the codes of its slope; `activation_pack_plain` defines it."""
    return activation_pack_plain(x, function, edges, codes, bits)


@activation_pack.register_fake
def _(
    x: Tensor, function: str, edges: list[float], codes: list[int], bits: int
) -> tuple[Tensor, Tensor]:
    packed = x.new_empty(packed_bytes(x.numel(), bits), dtype=torch.uint8)
    return torch.empty_like(x), packed

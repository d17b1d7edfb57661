"""Frozen weights kept in bfloat16 and widened where they are used, one layer at a time."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs.exact import Exact
from ..core.graft import Graft
from ..ops.conv import CONV, Window, along
from ..ops.linear import autocast, narrow_linear
from ..ops.saved import saved

FrozenDtype = Literal["fp32", "bf16"]


class NarrowLinear(nn.Linear):
    """A linear map whose frozen weight has fewer bytes than its input.

    Saves:
        The weight as it is kept, which is no copy. Its widened form lives for one product, in the
        forward and again in the backward.
    """

    positionwise = True

    def forward(self, x: Tensor) -> Tensor:
        """Compute `x W^T + b` in the input's dtype, or autocast's.

        Args:
            x: `(..., C)`.

        Returns:
            `(..., D)`.
        """
        if self.weight.requires_grad:  # of an adapter that was put in place later
            return super().forward(x)
        return narrow_linear(x, self.weight, self.bias)


class NarrowConv2d(nn.Conv2d):
    """A convolution whose frozen weight has fewer bytes than its input.

    Saves:
        The weight as it is kept, which is no copy; not the input, which torch would keep.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Compute `W * x + b` in the input's dtype, or autocast's.

        Args:
            x: `(B, C, H, W)`.

        Returns:
            `(B, D, H', W')`.
        """
        if self.weight.requires_grad:
            return super().forward(x)
        return saved(
            CONV,
            Exact(),
            *autocast((x, self.weight, self.bias)),
            shape=x.shape,
            window=Window(
                F.conv2d,
                along(self.stride),
                along(self.padding),
                along(self.dilation),
                self.groups,
            ),
        )


NARROW: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: NarrowLinear,
    nn.Conv2d: NarrowConv2d,
}
"""By exact type: a subclass may use its weight in a way of its own, and stays as it is."""


def narrow_weights(
    model: nn.Module, dtype: torch.dtype = torch.bfloat16, but: Collection[Tensor] = ()
) -> None:
    """Keep the frozen weights of a backbone's linear maps and convolutions in fewer bytes.

    What grafts brought, whatever trains, biases, norms, statistics and position embeddings (below
    1 % of a backbone's bytes) stay as they are.

    Args:
        model: The backbone, grafts in place; changed in place. Modules stay the same objects.
        dtype: What to keep the weights in.
        but: Weights to leave alone.
    """
    grafts = [m for m in model.modules() if isinstance(m, Graft)]
    backbones = {m for g in grafts for m in g.root.modules()}
    brought = {m for g in grafts for m in g.modules()} - backbones
    held = {id(t) for t in but}
    for module in model.modules():
        if module in brought or not _narrows(module, dtype):
            continue
        weight = module.get_parameter("weight")
        if id(weight) not in held:
            module.wide = weight.dtype  # type: ignore[assignment]
            weight.data = weight.data.to(dtype)
            module.__class__ = NARROW[type(module)]


def widen_weights(model: nn.Module) -> None:
    """Make narrow modules plain again, their weights in their old dtype; rounding is not undone.

    Args:
        model: Any module; changed in place.
    """
    for module in model.modules():
        for plain, narrow in NARROW.items():
            if type(module) is narrow:
                weight = module.get_parameter("weight")
                weight.data = weight.data.to(module.wide)  # type: ignore[arg-type]
                del module.wide
                module.__class__ = plain


def is_narrow(model: nn.Module) -> bool:
    """Say whether any weight is kept in fewer bytes.

    Args:
        model: Any module.

    Returns:
        Whether there is a narrow module.
    """
    return any(type(m) in NARROW.values() for m in model.modules())


def _narrows(module: nn.Module, dtype: torch.dtype) -> bool:
    if type(module) not in NARROW or getattr(module, "padding_mode", "zeros") != "zeros":
        return False
    weight = module.get_parameter("weight")
    plain = not isinstance(getattr(module, "padding", ()), str)
    return plain and not weight.requires_grad and weight.dtype.itemsize > dtype.itemsize

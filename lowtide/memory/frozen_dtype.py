"""Frozen weights kept in 16, 8 or 4 bits and widened where they are used, some rows at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..codecs.affine import Affine
from ..codecs.base import Codec
from ..codecs.cast import Cast
from ..codecs.normal_float import NormalFloat
from ..core.graft import Graft
from ..errors import InputError
from ..ops.conv import Window, along
from ..ops.frozen import Slabs, frozen_conv, frozen_linear

FrozenDtype = Literal["fp32", "bf16", "int8", "nf4", "int4"]

CODECS: Mapping[FrozenDtype, Codec] = {
    "bf16": Cast(torch.bfloat16),
    "int8": Affine(8, "row"),
    "nf4": NormalFloat(),
    "int4": Affine(4, 64, stats=torch.bfloat16),
}
"""How each dtype keeps a weight, taken as a matrix with a row per output: `int8` with a minimum and
a step per row in float32, `int4` with one in bfloat16 per 64 numbers, `nf4` as QLoRA does."""
FEW_CHANNELS = 4
"""A convolution that reads no more channels for an output stays wide in 8 and 4 bits: the one that
reads the image, and depthwise ones. They hold few numbers, and these few decide every output."""
PACKED = "packed"
"""Name of the parameter that holds the bytes of a weight, which has the name `weight` when wide."""


class Frozen(nn.Module):
    """A module whose frozen weight is kept in few bits.

    The bytes are a parameter, so they move and are copied with the module, and no cast of its dtype
    changes them. A state with a wide `weight` can be loaded: it is rounded on the way.

    Attributes:
        kept: Name of the dtype, a key of `CODECS`.
        slabs: How the weight lies in the bytes.
    """

    kept: FrozenDtype
    slabs: Slabs
    packed: nn.Parameter
    stands_for: type[nn.Module]

    @property
    def weight(self) -> Tensor:
        """The rounded weight, dequantised as a whole."""
        return self.slabs.whole(self.packed)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: object, **others: object
    ) -> None:
        wide = state_dict.get(f"{prefix}weight")
        if wide is not None and wide.shape == self.slabs.shape:
            packed = Slabs.pack(self.slabs.codec, wide.to(self.slabs.dtype))[1]
            del state_dict[f"{prefix}weight"]
            state_dict[prefix + PACKED] = packed
        super()._load_from_state_dict(state_dict, prefix, *rest, **others)

    def extra_repr(self) -> str:
        """Describe the module in a printed model.

        Returns:
            What its own class says, and the dtype.
        """
        return f"{super().extra_repr()}, frozen_dtype={self.kept}"


class FrozenLinear(Frozen, nn.Linear):  # type: ignore[override]
    """A linear map whose weight is frozen and kept in few bits.

    Saves:
        The bytes of the weight, which are no copy. Some rows at a time are widened for a product,
        in the forward and again in the backward.
    """

    stands_for = nn.Linear
    positionwise = True

    def forward(self, x: Tensor) -> Tensor:
        """Compute `x W^T + b` in the input's dtype, or autocast's.

        Args:
            x: `(..., C)`.

        Returns:
            `(..., D)`.
        """
        return frozen_linear(x, self.packed, self.bias, self.slabs)


class FrozenConv2d(Frozen, nn.Conv2d):  # type: ignore[override]
    """A convolution whose weight is frozen and kept in few bits.

    Saves:
        The bytes of the weight, which are no copy; not the input, which torch would keep.
    """

    stands_for = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """Compute `W * x + b` in the input's dtype, or autocast's.

        Args:
            x: `(B, C, H, W)`.

        Returns:
            `(B, D, H', W')`.
        """
        assert not isinstance(self.padding, str)  # such a one is left as it is
        stride, padding, dilation = map(along, (self.stride, self.padding, self.dilation))
        window = Window(nn.functional.conv2d, stride, padding, dilation, self.groups)
        return frozen_conv(x, self.packed, self.bias, self.slabs, window)


FROZEN: dict[type[nn.Module], type[Frozen]] = {
    nn.Linear: FrozenLinear,
    nn.Conv2d: FrozenConv2d,
}
"""By exact type: a subclass may use its weight in a way of its own, and stays as it is."""


def pack_frozen(model: nn.Module, dtype: FrozenDtype, but: Collection[Tensor] = ()) -> None:
    """Keep the frozen weights of linear maps and convolutions in fewer bits.

    What grafts brought, whatever trains, biases, norms, statistics and embeddings (below 1 % of a
    backbone's bytes) stay as they are; in 8 and 4 bits also convolutions over few channels.

    Args:
        model: A backbone, grafts in place; changed in place. Modules stay the same objects.
        dtype: What to keep the weights in; `fp32` changes nothing.
        but: Weights to leave alone.

    Raises:
        InputError: Weights are kept in another dtype already.
    """
    before = frozen_dtype_of(model)
    if before not in ("fp32", dtype):
        raise InputError(
            f"frozen weights are kept in {before} and would be rounded once more to {dtype}: begin"
            " with the original weights"
        )
    if dtype == "fp32":
        return
    made: dict[int, tuple[Slabs, nn.Parameter]] = {}
    left = {id(t) for t in but}
    for module in list(packable(model, dtype)):
        weight = module.get_parameter("weight")
        if id(weight) in left:
            continue
        if id(weight) not in made:
            slabs, packed = Slabs.pack(CODECS[dtype], weight)
            made[id(weight)] = slabs, nn.Parameter(packed, requires_grad=False)
        freeze(module, dtype, *made[id(weight)])


def packable(model: nn.Module, dtype: FrozenDtype) -> Iterator[nn.Module]:
    """Find the modules whose weight a dtype may keep.

    Args:
        model: A backbone, grafts in place.
        dtype: The dtype.

    Yields:
        Modules of the backbone's own with a frozen weight, that is wide as yet.
    """
    grafts = [m for m in model.modules() if isinstance(m, Graft)]
    backbones = {m for g in grafts for m in g.root.modules()}
    brought = {m for g in grafts for m in g.modules()} - backbones
    for module in model.modules():
        if module not in brought and _packs(module, dtype):
            yield module


def freeze(module: nn.Module, dtype: FrozenDtype, slabs: Slabs, packed: nn.Parameter) -> None:
    """Put the bytes of a weight in the place of the weight.

    Args:
        module: A plain Linear or Conv2d; changed in place.
        dtype: What the bytes are.
        slabs: How the weight lies in them.
        packed: The bytes.
    """
    _rename(module, "weight", PACKED, packed)
    module.__class__ = FROZEN[type(module)]
    module.kept, module.slabs = dtype, slabs  # type: ignore[assignment]


def unpack_frozen(model: nn.Module) -> None:
    """Make modules plain again, their weights in their old dtype; rounding is not undone.

    Args:
        model: Any module; changed in place.
    """
    made: dict[int, nn.Parameter] = {}
    for module in list(frozen_modules(model)):
        key = id(module.packed)
        if key not in made:
            made[key] = nn.Parameter(module.weight, requires_grad=False)
        del module.kept, module.slabs
        module.__class__ = module.stands_for  # type: ignore[assignment]
        _rename(module, PACKED, "weight", made[key])


def frozen_modules(model: nn.Module) -> Iterator[Frozen]:
    """Find the modules whose weight is kept in few bits.

    Args:
        model: Any module.

    Yields:
        The modules.
    """
    yield from (m for m in model.modules() if isinstance(m, Frozen))


def frozen_dtype_of(model: nn.Module) -> FrozenDtype:
    """Name the dtype that frozen weights are kept in.

    Args:
        model: Any module.

    Returns:
        The dtype's name; `fp32` where no weight is kept in fewer bits.
    """
    return next((m.kept for m in frozen_modules(model)), "fp32")


def hidden_numbers(model: nn.Module) -> int:
    """Count the weights of a model beyond the bytes in which they are packed.

    Args:
        model: Any module.

    Returns:
        What to add to a count of parameters, each byte of which counts as one.
    """
    each = {id(m.packed): m.slabs.shape.numel() - len(m.packed) for m in frozen_modules(model)}
    return sum(each.values())


def _rename(module: nn.Module, name: str, to: str, value: nn.Parameter) -> None:
    """Put a parameter in the place of another, in the order of before."""
    before = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update((to, value) if key == name else (key, p) for key, p in before.items())


def _packs(module: nn.Module, dtype: FrozenDtype) -> bool:
    if type(module) not in FROZEN or getattr(module, "padding_mode", "zeros") != "zeros":
        return False
    if isinstance(getattr(module, "padding", ()), str):
        return False
    weight = module.get_parameter("weight")
    if weight.requires_grad or not weight.is_floating_point() or not weight.numel():
        return False
    if dtype == "bf16":
        return weight.dtype.itemsize > 2
    return weight.ndim == 2 or weight.shape[1] > FEW_CHANNELS

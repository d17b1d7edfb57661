"""Kinds of modules, by the class they derive from."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..core.linear_maps import is_frozen_norm
from ..core.site import Layout, Role
from ..versions import classes

MAPS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
"""Linear in their input, whatever they make of their weight first."""
NORMS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    _NormBase,
    nn.GroupNorm,
    nn.RMSNorm,
    *classes(
        "timm.layers",
        *("RmsNorm", "RmsNorm2d", "RmsNormFp32", "RmsNorm2dFp32", "FrozenBatchNormAct2d"),
        *("SimpleNorm", "SimpleNorm2d", "SimpleNormFp32", "SimpleNorm2dFp32"),
        *("EvoNorm2dB0", "EvoNorm2dB1", "EvoNorm2dB2", "EvoNorm2dS0", "EvoNorm2dS1"),
        *("EvoNorm2dS2", "FilterResponseNormTlu2d", "FilterResponseNormAct2d"),
    ),
)
"""Normalise, then scale and shift; some apply an activation to that."""
_LAST = (
    nn.LayerNorm,
    nn.RMSNorm,
    *classes("timm.layers", "RmsNorm", "RmsNormFp32", "SimpleNorm", "SimpleNormFp32"),
)
_FIRST = classes(
    "timm.layers", "LayerNorm2d", "LayerNorm2dFp32", "LayerNormAct2d", "LayerNormAct2dFp32"
)


def ungraftable(module: nn.Module) -> Role | None:
    """Give the role of a linear module of a kind that no graft handles.

    Args:
        module: Any module.

    Returns:
        The role that a module of a known kind would have in its place, or None.
    """
    if isinstance(module, _ConvNd) and not is_map(module):
        return Role.CONV
    return Role.LINEAR if isinstance(module, nn.MultiheadAttention | nn.Bilinear) else None


def is_map(module: nn.Module) -> bool:
    """Say whether a module is a linear map or convolution, up to a bias.

    Args:
        module: Any module.

    Returns:
        Whether it is a Linear or Conv2d or derives from one.
    """
    return isinstance(module, MAPS)


def is_norm(module: nn.Module) -> bool:
    """Say whether a module is a norm.

    Args:
        module: Any module.

    Returns:
        Whether it is one or derives from one; with an activation or not, frozen or not.
    """
    return isinstance(module, NORMS) or is_frozen_norm(module)


def scales(module: nn.Module) -> bool:
    """Say whether a module is a norm with a scale of its own, be it a buffer.

    Args:
        module: Any module.

    Returns:
        Whether it is one.
    """
    return is_norm(module) and (bool(module._parameters) or is_frozen_norm(module))


def channel_axis(module: nn.Module, shape: tuple[int, ...]) -> Layout | None:
    """Find the channel axis of a map's or a norm's output.

    Args:
        module: Any module.
        shape: The shape it gave; empty where it was never called.

    Returns:
        The layout; None where the module is neither.
    """
    if is_map(module):
        return Layout.FIRST if isinstance(module, nn.Conv2d) else Layout.LAST
    if not is_norm(module):
        return None
    sizes = {n for n in shape[1:2] + shape[-1:] if n == _channels(module)}
    by_shape = len(sizes) == 1 and shape[1] != shape[-1]
    if by_shape and len(shape) > 2:
        return Layout.FIRST if shape[1] in sizes else Layout.LAST
    return (
        Layout.LAST
        if isinstance(module, _LAST) and not isinstance(module, _FIRST)
        else Layout.FIRST
    )


def _channels(norm: nn.Module) -> int:
    weight = getattr(norm, "weight", None)
    return 0 if weight is None else weight.numel()

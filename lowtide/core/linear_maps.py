"""Helpers for what Linear, Conv2d and the norms have in common.

The only place that asks what kind of linear map a module is. Look-ups are by exact type: a subclass
may compute something else (weight standardisation, a fused activation), and folding into it would
be wrong in silence.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from timm import layers as tl
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import Unsupported
from ..versions import classes
from .site import Layout
from .wrapped import plain_kind

MAPS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d, tl.Conv2dSame)
"""y = W x + b."""
PADDED = ("Conv2dStaticSamePadding", "Conv2dDynamicSamePadding")
"""Names of segmentation_models_pytorch's convolutions of a padded input, linear maps as well."""
NORMS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.RMSNorm,
    tl.LayerNorm,
    tl.LayerNorm2d,
    *classes("timm.layers", "RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d"),
)
"""y = w * xhat + b, some without b."""

ACTIVATED: tuple[type[nn.Module], ...] = classes(
    "timm.layers", "BatchNormAct2d", "GroupNormAct", "LayerNormAct", "LayerNormAct2d"
)
"""y = act(w * xhat + b)."""


FROZEN = {"weight", "bias", "running_mean", "running_var"}
"""Buffers of a FrozenBatchNorm2d, all of which it has and no parameter."""


def is_frozen_norm(module: nn.Module) -> bool:
    """Say whether a module is a BatchNorm2d of which nothing moves: y = w * xhat + b.

    Args:
        module: Any module.

    Returns:
        Whether it is torchvision's FrozenBatchNorm2d or one of transformers' copies of it.
    """
    kind = plain_kind(module)
    known = kind.__module__.startswith(("torchvision.", "transformers."))
    named = known and kind.__name__.endswith("FrozenBatchNorm2d")
    return named and module._buffers.keys() == FROZEN and not module._parameters


def scales_and_shifts(module: nn.Module) -> bool:
    """Say whether a library's own LayerNorm is y = w * xhat + b, by trying it.

    Libraries derive theirs for channels that come first (ConvNeXt, SAM, SegFormer); one of those
    multiplies by w + 1.

    Args:
        module: Derives from `nn.LayerNorm`.

    Returns:
        Whether it does what its weight and bias say, along the axis that they fit.
    """
    if not isinstance(module, nn.LayerNorm) or module._parameters.keys() != {"weight", "bias"}:
        return False
    if module.weight is None or module.bias is None or module.weight.is_meta:
        return False
    count, like = module.weight.numel(), module.weight
    drawn = torch.Generator().manual_seed(0)
    w, b = (torch.randn(count, generator=drawn).to(like) for _ in range(2))
    one = {"weight": torch.ones_like(w), "bias": torch.zeros_like(b)}
    tried = []
    for shape, tail in (((2, 3, count), ()), ((2, 3, 5, count), ()), ((2, count, 3, 5), (1, 1))):
        x = torch.randn(shape, generator=drawn).to(like)
        try:
            y, plain = (functional_call(module, p, x) for p in ({"weight": w, "bias": b}, one))
        except RuntimeError:  # it takes the channels elsewhere
            continue
        made = plain * w.view(-1, *tail) + b.view(-1, *tail)
        tried.append(
            y.shape == x.shape and torch.allclose(y, made, atol=1e-2 if like.itemsize < 4 else 1e-4)
        )
    return bool(tried) and all(tried)


def low_rank(module: Any, rank: int, out: int | None = None) -> tuple[nn.Module, nn.Module]:
    """Build `up(down(x))` with the shape of `module(x)` and at most `rank` (per group).

    A convolution is factored as one of the same kernel to `rank` channels and a 1x1 back. Of a
    grouped convolution each group gets its own factors, and no more rank than its block has.

    Args:
        module: A Linear or Conv2d.
        rank: Inner width.
        out: Output channels, where the update feeds only some of the module's.

    Returns:
        `down` with PyTorch's own initialisation (Kaiming-uniform, a = sqrt(5)) and `up` at zero.

    Raises:
        Unsupported: `module` is neither.
    """
    if not is_plain_map(module):
        raise Unsupported(
            f"a low-rank update needs a Linear or Conv2d, not {type(module).__name__}"
        )
    like: Any = {"device": module.weight.device, "dtype": module.weight.dtype}
    down: Any
    up: Any
    if isinstance(module, nn.Conv2d):
        g = module.groups
        taps = module.kernel_size[0] * module.kernel_size[1]
        r = g * min(rank, module.out_channels // g, module.in_channels // g * taps)
        down = parallel(module, r, groups=g, bias=False)
        up = nn.Conv2d(r, out or module.out_channels, 1, groups=g, bias=False, **like)
    else:
        down = nn.Linear(module.in_features, rank, bias=False, **like)
        up = nn.Linear(rank, out or module.out_features, bias=False, **like)
    nn.init.zeros_(up.weight)
    return down, up


def parallel(module: Any, out: int, groups: int, bias: bool) -> nn.Conv2d:
    """Build a convolution that reads the positions a given one reads and writes where it writes.

    Args:
        module: The convolution.
        out: Output channels.
        groups: Groups of channels.
        bias: Whether it has a bias.

    Returns:
        A convolution of the same kind, kernel, stride, padding and dilation.
    """
    if _is_padded(module):
        return _like(module, out, groups, bias)
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation, groups)
    with module.weight.device:
        conv: Any = plain_kind(module)(module.in_channels, out, *geometry, bias=bias)
    conv.to(module.weight.dtype)
    conv.padding_mode = module.padding_mode
    return conv


def is_plain_map(module: nn.Module) -> bool:
    """Say whether a module is y = W x + b with the weight and bias that it holds.

    Args:
        module: Any module.

    Returns:
        Whether it is a Linear or a Conv2d, padded in front or not, and no other subclass.
    """
    return plain_kind(module) in MAPS or _is_padded(module)


def _is_padded(module: nn.Module) -> bool:
    kind = plain_kind(module)
    return kind.__name__ in PADDED and kind.__module__.startswith("segmentation_models_pytorch.")


def _like(module: Any, out: int, groups: int, bias: bool) -> nn.Conv2d:
    """Copy a convolution, padding and all, with a new weight of another size."""
    conv = copy.copy(module)
    conv.__dict__ |= {k: dict(conv.__dict__[k]) for k in ("_parameters", "_buffers", "_modules")}
    conv.out_channels, conv.groups = out, groups
    size = (out, module.in_channels // groups, *module.kernel_size)
    conv.weight = nn.Parameter(module.weight.new_empty(size))
    conv.bias = nn.Parameter(module.weight.new_empty(out)) if bias else None
    conv.reset_parameters()
    return conv


def bottleneck(layout: Layout, channels: int, rank: int) -> tuple[nn.Module, nn.Module]:
    """Build `down` and `up` of a bottleneck that maps the channels of each position on their own.

    Args:
        layout: Channel axis of what it maps.
        channels: Channels of its input and output.
        rank: Width between the maps.

    Returns:
        Two maps with biases, Linear where channels come last and 1x1 convolutions where they come
        first: `down` with PyTorch's own initialisation (Kaiming-uniform, a = sqrt(5)) and a zero
        bias, `up` at zero.
    """
    kind: Any = nn.Linear if layout is Layout.LAST else partial(nn.Conv2d, kernel_size=1)
    down, up = kind(channels, rank), kind(rank, channels)
    for zero in (down.bias, up.weight, up.bias):
        nn.init.zeros_(zero)
    return down, up


def product(down: Any, up: Any) -> Tensor:
    """Multiply the factors of `low_rank` out.

    Args:
        down: The first factor.
        up: The second.

    Returns:
        The weight of `up(down(.))` as one map, shaped like the module it was made for.
    """
    g = getattr(up, "groups", 1)
    u = up.weight.flatten(1).unflatten(0, (g, -1))
    d = down.weight.unflatten(0, (g, -1))
    return torch.einsum("gor,gr...->go...", u, d).flatten(0, 1)


def fold(
    module: Any,
    *,
    delta: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    into: Tensor | None = None,
) -> nn.Module | None:
    """Fold `y -> scale * (y + delta x) + shift` into a copy of the module that gives y.

    Of a norm with an activation, y is what the activation is given.

    Args:
        module: A Linear, Conv2d or norm with a scale and a shift.
        delta: Added to the weight of a map; same shape.
        scale: One factor per output channel.
        shift: One summand per output channel.
        into: One factor per input channel of a map, applied in front of it.

    Returns:
        The copy, or None where `module` cannot absorb the change.
    """
    kind = plain_kind(module)
    own = module._buffers if is_frozen_norm(module) else module._parameters
    norm = kind in (*NORMS, *ACTIVATED) or is_frozen_norm(module) or scales_and_shifts(module)
    norm = norm and delta is into is None and module.weight is not None
    if not is_plain_map(module) and not (norm and (shift is None or "bias" in own)):
        return None
    out = copy.deepcopy(module)
    with torch.no_grad():
        w = module.weight if delta is None else module.weight + delta
        b = own.get("bias")
        if into is not None:
            inputs = into.view(getattr(module, "groups", 1), 1, -1, *[1] * (w.ndim - 2))
            w = (w.unflatten(0, (len(inputs), -1)) * inputs).flatten(0, 1)
        if scale is not None:
            w = w * scale.view(-1, *[1] * (w.ndim - 1))
            b = None if b is None else b * scale
        if shift is not None:
            b = shift if b is None else b + shift
        kept: type[nn.Parameter] | type[nn.Buffer] = (
            nn.Parameter if own is module._parameters else nn.Buffer
        )
        out.weight = kept(w.clone())
        if b is not None:
            out.bias = kept(b.clone())
    return out

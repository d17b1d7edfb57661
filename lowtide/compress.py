"""Answer a model's torch functions with ones that keep less for the backward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm.layers as layers
import torch
from timm.models import beit, eva, swin_transformer, swin_transformer_v2
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from .codecs.affine import Affine, Rounding
from .codecs.base import Codec
from .codecs.codebook import Codebook
from .codecs.sign import Sign
from .codecs.sine import Sine
from .errors import UnknownName
from .ops import CALLS, NAMES
from .ops.saved import Call
from .ops.unary import MODULES, activate

PIECEWISE: tuple[type[nn.Module], ...] = (
    layers.Mlp,
    layers.GluMlp,
    layers.SwiGLU,
    layers.ConvMlp,
    layers.GlobalResponseNormMlp,
    layers.Attention,
    layers.AttentionRope,
    beit.Attention,
    eva.EvaAttention,
    swin_transformer.WindowAttention,
    swin_transformer_v2.WindowAttention,
)
"""Modules that treat every image (or window) by itself and are widest inside: run in pieces."""

_answering = threading.local()
_classes: dict[type[nn.Module], type[nn.Module]] = {}


@dataclass(frozen=True)
class Policy:
    """What is kept for the backward pass.

    Attributes:
        codecs: A codec for each op to answer, by name; ops without one are left to torch.
        piece: Largest input, in numbers, that an MLP or an attention is run on at once; its hidden
            tensors exist for one piece at a time. None runs them whole.
    """

    codecs: Mapping[str, Codec] = field(default_factory=dict)
    piece: int | None = None

    def __post_init__(self) -> None:
        for name in self.codecs:
            if name not in NAMES:
                raise UnknownName("op", name, NAMES)

    @classmethod
    def exact(cls) -> Policy:
        """Leave everything to torch.

        Returns:
            The policy.
        """
        return cls()

    @classmethod
    def s2a(cls, rounding: Rounding = "nearest") -> Policy:
        """Quantise as S2A does, to the letter (Jin et al. 2025, section 3.2).

        Softmax: 4 bits between minimum and maximum of each attention row. GELU: the input clipped
        to [-2, 2], 4 bits between its minimum and maximum, slope s(1.702 x) + 0.22 sin(1.5 x);
        SiLU by substitution. ReLU: 1 bit. Nothing else. A fused attention is taken apart, so that
        its softmax is kept as the paper keeps it.

        Args:
            rounding: To the nearest code, or `floor` as the paper's bracket is drawn.

        Returns:
            The policy.
        """
        gelu = Sine(rounding=rounding)
        return cls({
            "gelu": gelu,
            "gelu_tanh": gelu,
            "quick_gelu": gelu,
            "silu": Sine(rate=1.0, rounding=rounding),
            "relu": Sign(),
            "softmax": Affine(4, "row", rounding),
        })

    @classmethod
    def tight(cls) -> Policy:
        """Keep the least that leaves the gradient close.

        Returns:
            The policy.
        """
        four = Affine(4, 64, stats=torch.bfloat16)
        eight = Affine(8, 64, stats=torch.bfloat16)
        smooth = ("gelu", "gelu_tanh", "quick_gelu", "silu", "hardswish")
        return cls(
            {
                **{name: Codebook.of(name) for name in smooth},
                "relu": Sign(),
                "relu6": Sign(),
                "dropout": Sign(),
                "layer_norm": four,
                "attention": four,
                "softmax": Affine(8, "row", stats=torch.bfloat16),
                "matmul": eight,
                "linear": eight,
                "conv": eight,
            },
            piece=1 << 20,
        )


POLICIES: dict[str, Callable[[], Policy]] = {
    "exact": Policy.exact,
    "s2a": Policy.s2a,
    "tight": Policy.tight,
}


def compress(model: nn.Module, policy: Policy) -> nn.Module:
    """Make a model keep for its backward pass what the policy says; its outputs do not change.

    For the length of each forward a `TorchFunctionMode` answers the functions of the policy's ops.
    No module is replaced: the class of each module that has children becomes a subclass of itself
    that enters the mode, so a block recomputed by gradient checkpointing is answered as well.
    Modules, parameters, `state_dict` keys and `isinstance` stay. Without gradients nothing differs.

    Args:
        model: Any module; changed in place. A policy it had before is replaced.
        policy: What to keep.

    Returns:
        The same object.
    """
    decompress(model)
    if not policy.codecs and policy.piece is None:
        return model
    for module in model.modules():
        if module is model or any(True for _ in module.children()) or type(module) in MODULES:
            module.__class__ = _answered(type(module))
            module._lowtide_policy = policy  # type: ignore[assignment]
    return model


def decompress(model: nn.Module) -> nn.Module:
    """Undo `compress`.

    Args:
        model: Any module; changed in place.

    Returns:
        The same object.
    """
    for module in model.modules():
        if (plain := getattr(type(module), "_lowtide_plain", None)) is not None:
            module.__class__ = plain
            del module._lowtide_policy
    return model


class _Answers(TorchFunctionMode):
    """Answers calls of torch functions for as long as it is entered."""

    def __init__(self, codecs: Mapping[str, Codec]) -> None:
        super().__init__()
        self._codecs = codecs

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        answer = CALLS.get(func)
        if answer is not None and torch.is_grad_enabled():
            result = answer(self._codecs, Call(func, args, kwargs))
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


def _answered(plain: type[nn.Module]) -> type[nn.Module]:
    """Make, once, the subclass that enters the mode."""
    if plain in _classes:
        return _classes[plain]

    class Answered(plain):  # type: ignore[misc, valid-type]
        _lowtide_plain = plain

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            policy: Policy = self._lowtide_policy
            if not torch.is_grad_enabled():
                return super().forward(*args, **kwargs)
            before = getattr(_answering, "policy", None)
            if before is policy:
                return _run(self, policy, super().forward, args, kwargs)
            _answering.policy = policy
            try:
                with _Answers(policy.codecs):
                    return _run(self, policy, super().forward, args, kwargs)
            finally:
                _answering.policy = before

        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            return _revive, (plain,), self.__dict__

    Answered.__name__, Answered.__qualname__ = plain.__name__, plain.__qualname__
    Answered.__module__, Answered.__doc__ = plain.__module__, plain.__doc__
    _classes[plain] = Answered
    return Answered


def _revive(plain: type[nn.Module]) -> nn.Module:
    answered = _answered(plain)
    return answered.__new__(answered)


def _run(
    module: nn.Module,
    policy: Policy,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    plain: type[nn.Module] = module._lowtide_plain  # type: ignore[assignment]
    if plain in MODULES and not getattr(module, "inplace", False):
        result = activate(MODULES[plain], policy.codecs, forward, *args)
        return forward(*args) if result is NotImplemented else result
    rows = _rows(module, policy.piece, args, kwargs)
    if rows is None:
        return forward(*args, **kwargs)
    # Every piece has its own autograd nodes, and the backward pass finishes one before the next.
    return torch.cat([forward(part, *args[1:], **kwargs) for part in args[0].split(rows)])


def _rows(
    module: nn.Module, piece: int | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int | None:
    """Say how many images of the input to run at once, or None for all of them."""
    if piece is None or not isinstance(module, PIECEWISE) or not args:
        return None
    x, *others = *args, *kwargs.values()
    shared = [t for t in others if isinstance(t, Tensor)]
    windows = 1
    if isinstance(module, (swin_transformer.WindowAttention, swin_transformer_v2.WindowAttention)):
        # The one other tensor is the mask of each window of an image: pieces are whole images.
        windows = len(shared[0]) if shared else 1
    elif any(t.ndim > 2 for t in shared):
        return None
    if x.numel() <= piece or len(x) <= windows or _mixes_images(module):
        return None
    pieces = -(-x.numel() // piece)
    return -(-len(x) // (pieces * windows)) * windows


def _mixes_images(module: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and m.training for m in module.modules())

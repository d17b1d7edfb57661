"""The class that a compressed module has instead of its own."""

from __future__ import annotations

import copyreg
from functools import wraps
from typing import Any

import torch
from torch import fx, nn

from ..ops.region import forgetting, region
from ..ops.spare import watching
from .mode import Answers, current, put, silent
from .run import run_sparing
from .state import NAME, State, state_of

_classes: dict[type[nn.Module], type[nn.Module]] = {}


def swapped(plain: type[nn.Module]) -> type[nn.Module]:
    """Make, once for each class, the subclass whose forward enters the mode.

    Args:
        plain: The class of a module.

    Returns:
        A subclass under the same name; it does nothing where there is no policy, no gradient, or a
        tracer in the place of tensors.
    """
    if plain in _classes:
        return _classes[plain]

    class Swapped(plain):  # type: ignore[misc, valid-type]
        _lowtide_plain = plain
        _lowtide_state = State()

        # Trainers, exporters and tracers read from it what the forward takes.
        @wraps(plain.forward)
        def forward(self, *args: Any, **kwargs: object) -> Any:
            policy, outer = self._lowtide_state.policy, current()
            if policy is None or not torch.is_grad_enabled() or silent() or _traced(args, kwargs):
                return super().forward(*args, **kwargs)
            here = region()
            if outer is not None and outer.policy is policy and outer.region == here:
                return run_sparing(self, outer, super().forward, args, kwargs)
            put(mode := Answers(policy, here))
            inputs = (*args, *kwargs.values()) if here is not None else ()
            try:
                with mode, forgetting(inputs), watching() as mode.watched:
                    return run_sparing(self, mode, super().forward, args, kwargs)
            finally:
                put(outer)

        def __reduce_ex__(self, protocol: object) -> Any:
            make, given, *state = super().__reduce_ex__(protocol)
            if make is copyreg.__newobj__:  # type: ignore[attr-defined]
                make, given = _revive, (plain, *given[1:])
            return make, given, *state

    if hasattr(plain, "__getitem__"):
        Swapped.__getitem__ = _sliced
    Swapped.__name__, Swapped.__qualname__ = plain.__name__, plain.__qualname__
    Swapped.__module__, Swapped.__doc__ = plain.__module__, plain.__doc__
    _classes[plain] = Swapped
    return Swapped


def _sliced(self: Any, index: object) -> object:
    part: Any = self._lowtide_plain.__getitem__(self, index)
    if hasattr(type(part), "_lowtide_plain") and NAME not in vars(part):  # a slice, made anew
        setattr(part, NAME, State(state_of(self).policy))
    return part


def _traced(args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Whether a tracer asks, which gives names or shapes alone in the place of tensors."""
    given = (*args, *kwargs.values())
    return any(isinstance(a, fx.Proxy) or _on_meta(a) for a in given)


def _on_meta(a: object) -> bool:
    return isinstance(a, torch.Tensor) and a.device.type == "meta"


def _revive(plain: type[nn.Module], *given: object) -> nn.Module:
    kind = swapped(plain)
    return kind.__new__(kind, *given)

"""Count live bytes: every storage from birth to death, on real and on fake tensors alike."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PARTS = ("weights", "saved", "temporaries", "gradients", "optimiser")


@dataclass(frozen=True)
class Footprint:
    """The largest number of bytes alive at one moment, and what they were.

    Attributes:
        peak_bytes: Sum of the sizes of all live tensor storages at the worst moment.
        parts: The same bytes by what they were: `weights` (parameters and buffers), `saved` (kept
            by autograd for the backward pass), `gradients` (`.grad` of parameters), `optimiser`
            (its state), `temporaries` (the rest, with the input batch). They add up to the peak.
    """

    peak_bytes: int
    parts: dict[str, int]


@dataclass
class _Live:
    """One storage that is alive."""

    alive: weakref.ref[torch.UntypedStorage]
    nbytes: int
    owner: str | None = None
    savings: int = 0

    @property
    def part(self) -> str:
        return self.owner or ("saved" if self.savings else "temporaries")


class _SavedTensor:
    """What autograd holds in place of a saved tensor; its death is the end of the saving."""

    def __init__(self, tensor: Tensor, meter: Meter) -> None:
        self.tensor = tensor
        self._meter = meter
        meter._save(tensor, +1)

    def __del__(self) -> None:
        self._meter._save(self.tensor, -1)


@dataclass(eq=False)
class _Ledger:
    """The live storages, their sum by part, and the largest sum so far."""

    live: dict[int, _Live] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    peak: Footprint = field(default_factory=lambda: Footprint(0, dict.fromkeys(PARTS, 0)))

    def track(self, tensor: Tensor) -> _Live:
        storage = tensor.untyped_storage()
        key = id(storage)
        found = self.live.get(key)
        if found is None or found.alive() is not storage:
            found = _Live(weakref.ref(storage, lambda _: self._forget(key)), storage.nbytes())
            self.live[key] = found
            self.parts[found.part] += found.nbytes
        return found

    def _forget(self, key: int) -> None:
        dead = self.live.pop(key, None)
        if dead is not None:
            self.parts[dead.part] -= dead.nbytes

    def change(self, entry: _Live, owner: str | None, savings: int) -> None:
        self.parts[entry.part] -= entry.nbytes
        entry.owner, entry.savings = owner, savings
        self.parts[entry.part] += entry.nbytes

    def note_peak(self) -> None:
        now = sum(self.parts.values())
        # Equal peaks: the later one, whose optimiser state is known as such from the step before.
        if now >= self.peak.peak_bytes:
            self.peak = Footprint(now, dict(self.parts))


class Meter(TorchDispatchMode):
    """Follow every tensor storage while the mode is entered, and remember the worst moment.

    A storage counts from the first operation that touches it until it is freed, once, whatever the
    number of its views; weights count from the start. Bytes are those PyTorch asks for, before the
    rounding and caching of any allocator, and without scratch memory inside a kernel. The same code
    gives the same number on CPU tensors and under `FakeTensorMode` (enter that one first).

    """

    only_looks = True
    """What autograd saves comes back as the same object."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Watch a model and its optimiser.

        Args:
            model: Its parameters and buffers are the weights, their `.grad` the gradients.
            optimizer: Its state is counted by itself.
        """
        super().__init__()
        self._model = model
        self._optimizer = optimizer
        self._ledger = _Ledger()
        self._exits = ExitStack()

    @property
    def peak(self) -> Footprint:
        """The footprint at the worst moment so far."""
        return self._ledger.peak

    @property
    def now(self) -> Footprint:
        """The footprint at this moment."""
        parts = dict(self._ledger.parts)
        return Footprint(sum(parts.values()), parts)

    def __enter__(self) -> Meter:
        self._set_owner("weights", (*self._model.parameters(), *self._model.buffers()))
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(self._accumulated)
                self._exits.callback(hook.remove)
                self._accumulated(parameter)
        if self._optimizer is not None:
            self._own_state(self._optimizer)
            step = self._optimizer.register_step_post_hook(lambda o, *_: self._own_state(o))
            self._exits.callback(step.remove)
        self._exits.enter_context(saved_tensors_hooks(self._pack, lambda kept: kept.tensor))
        self._ledger.note_peak()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exits.close()
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:
            return result
        if func is torch.ops.aten.convolution_backward.default:
            # oneDNN makes the weight's gradient whenever it makes the bias's. What nobody asked for
            # is scratch of that kernel, and fake tensors do not have it.
            result = tuple(g if asked else None for g, asked in zip(result, args[-1], strict=True))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor):
                self._ledger.track(leaf)
        self._ledger.note_peak()
        return result

    def _set_owner(self, owner: str, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            entry = self._ledger.track(tensor)
            # A weight stays a weight, even if the optimiser or autograd holds it too.
            if entry.owner is None:
                self._ledger.change(entry, owner, entry.savings)

    def _own_state(self, optimizer: Optimizer) -> None:
        leaves = tree_leaves(list(optimizer.state.values()))
        self._set_owner("optimiser", (leaf for leaf in leaves if isinstance(leaf, Tensor)))

    def _accumulated(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._set_owner("gradients", (parameter.grad,))

    def _pack(self, tensor: Tensor) -> _SavedTensor:
        return _SavedTensor(tensor, self)

    def _save(self, tensor: Tensor, change: int) -> None:
        entry = self._ledger.track(tensor)
        self._ledger.change(entry, entry.owner, entry.savings + change)


class RealLayouts(TorchDispatchMode):
    """Lay out what fake kernels give as the real ones do; enter it after `FakeTensorMode`.

    The gradient of a LayerNorm's input is contiguous. A fake one has the strides of the input, and
    what reads it may have to copy it.
    """

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.native_layer_norm_backward.default and result[0] is not None:
            return (torch.empty(result[0].shape, dtype=result[0].dtype), *result[1:])
        return result


def footprint(
    step: Callable[[], object],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    steps: int = 2,
) -> Footprint:
    """Run training steps and say how many bytes were alive at the worst moment.

    Two steps are needed to see an optimiser's state, born in the first, beside the activations of
    the second.

    Args:
        step: One training step: forward, backward, optimiser step, gradients cleared.
        model: The model it trains.
        optimizer: The optimiser it uses, or None.
        steps: How many times to run it.

    Returns:
        The peak and its parts.
    """
    with Meter(model, optimizer) as meter:
        for _ in range(steps):
            step()
    return meter.peak

"""Choose what to recompute in a model without a table, by measuring its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from ..core.wrapped import numbers_of
from ..memory.compress import decompress
from .meta_model import meta_copy
from .table import image_shape


@dataclass
class _Seen:
    """What one module did in a forward with gradients.

    Attributes:
        calls: Tensors given and the slice of `_Watch.kept` of each call.
        pure: Whether it left its arguments and buffers alone.
    """

    calls: list[tuple[list[Tensor], slice]] = field(default_factory=list)
    pure: bool = True


class _Watch:
    """Notes, in a forward on the meta device, what every module is given and keeps."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: dict[str, _Seen] = {}
        self.kept: list[Tensor] = []
        self._open: list[tuple[list[Tensor], list[int], int]] = []
        for path, module in model.named_modules():
            if path and any(True for _ in module.children()):
                self.seen[path] = seen = _Seen()
                module.register_forward_pre_hook(self._enter, with_kwargs=True)
                module.register_forward_hook(self._leave(seen), with_kwargs=True)

    def _enter(self, module: nn.Module, args: object, kwargs: object) -> None:
        given = _tensors((args, kwargs))
        self._open.append((given, _versions(module, given), len(self.kept)))

    def _leave(self, seen: _Seen) -> Callable[..., None]:
        def leave(module: nn.Module, args: object, kwargs: object, out: object) -> None:
            given, before, start = self._open.pop()
            seen.calls.append((given, slice(start, len(self.kept))))
            seen.pure &= _versions(module, given) == before

        return leave


def recomputable(model: nn.Module) -> tuple[str, ...]:
    """Choose the parts to recompute in backward so that the peak memory is lowest.

    A part must leave its arguments and buffers as they are, statistics of BatchNorm apart, or a
    second run would not be the first one. Of the parts no larger than a bound, the outermost are
    taken; the bound is the one with the smallest sum of

        what stays kept outside them + what they are given + the largest part's inside.

    Measured in bytes, in one training forward on the meta device where everything trains.

    Args:
        model: Any model that runs on the image it is made for.

    Returns:
        Paths, in order; none where nothing is worth it.
    """
    meta = decompress(meta_copy(model)).train()
    for p in meta.parameters():
        p.requires_grad_(p.is_floating_point())
    watch = _Watch(meta)
    like = numbers_of(meta)
    image = torch.empty(2, *image_shape(model), device="meta", dtype=like.dtype)

    def pack(t: Tensor) -> Tensor:
        watch.kept.append(t)
        return t

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        meta(image)
    own = {_storage(t) for t in (*meta.parameters(), *meta.buffers())}
    inside = {
        p: max(_bytes(watch.kept[part], own | set(map(_storage, given))) for given, part in s.calls)
        for p, s in watch.seen.items()
        if s.calls and s.pure
    }
    candidates = {
        p: watch.seen[p]
        for p, size in inside.items()
        if size > max(_bytes(given, own) for given, _ in watch.seen[p].calls)
    }
    choices = [
        tuple(_outermost(candidates, inside, bound)) for bound in sorted({0, *inside.values()})
    ]
    return min(choices, key=lambda c: _peak(c, watch, candidates, inside, own))


def _outermost(candidates: dict[str, _Seen], inside: dict[str, int], bound: int) -> Iterator[str]:
    last = "\0"
    for path in candidates:
        if inside[path] <= bound and not path.startswith(last):
            last = f"{path}."
            yield path


def _peak(
    chosen: tuple[str, ...],
    watch: _Watch,
    candidates: dict[str, _Seen],
    inside: dict[str, int],
    own: set[int],
) -> int:
    calls = [call for path in chosen for call in candidates[path].calls]
    covered = {i for _, part in calls for i in range(*part.indices(len(watch.kept)))}
    outside = [t for i, t in enumerate(watch.kept) if i not in covered]
    given = [t for tensors, _ in calls for t in tensors]
    return _bytes([*outside, *given], own) + max((inside[path] for path in chosen), default=0)


def _bytes(tensors: list[Tensor], but: set[int]) -> int:
    sizes = {_storage(t): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for storage, size in sizes.items() if storage not in but)


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _tensors(values: object) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


def _versions(module: nn.Module, given: list[Tensor]) -> list[int]:
    buffers = [
        b
        for m in module.modules()
        if not isinstance(m, _BatchNorm)
        for b in m._buffers.values()
        if b is not None
    ]
    return [t._version for t in (*given, *buffers)]

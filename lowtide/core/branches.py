"""A feature map that is a sum of branches, and how the branches absorb a scale and shift of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from .graft import Graft
from .linear_maps import fold


@dataclass(frozen=True)
class Term:
    """One summand: the output of a map, times a factor per channel if there is one.

    Attributes:
        path: The map.
        factor: Path of the module that holds the factor, and its name there; None for none.
    """

    path: str
    factor: tuple[str, str] | None = None


@dataclass(frozen=True)
class Sum:
    """A map `x = sum_k f_k M_k(...)` that only linear maps read while it grows.

    Attributes:
        path: Where it is whole.
        terms: Its summands, in the order they are added.
        readers: The maps that read what is there so far.
    """

    path: str
    terms: tuple[Term, ...]
    readers: tuple[str, ...]

    def absorb(
        self, find: Callable[[str], nn.Module], scale: Tensor | None, shift: Tensor | None
    ) -> dict[str, nn.Module]:
        """Fold `x -> scale * x + shift` into the maps around the sum.

        Every M_k is scaled by `scale`, every reader is given `1 / scale` to undo it, and the last
        M_k is shifted by `shift / f_k`.

        Args:
            find: Gives the module at a path, plain.
            scale: One factor per channel.
            shift: One summand per channel.

        Returns:
            The folded modules by path.

        Raises:
            Unsupported: A factor is 0, a map is no plain one, or the last has no bias.
        """
        made: dict[str, nn.Module] = {}
        if scale is not None:
            _refuse_zeros(scale, "its scale")
            for path in self.readers:
                made[path] = _folded(path, fold(find(path), into=1 / scale))
            for term in self.terms:
                made[term.path] = _folded(term.path, fold(find(term.path), scale=scale))
        if shift is not None:
            last = self.terms[-1]
            if last.factor is not None:
                module, name = last.factor
                holder = find(module)
                factor = (holder.root if isinstance(holder, Graft) else holder).get_parameter(name)
                _refuse_zeros(factor, f"{module}.{name}")
                shift = shift / factor
            target = made[last.path] if last.path in made else find(last.path)
            if getattr(target, "bias", None) is None:
                raise Unsupported(f"{last.path} has no bias to take the shift")
            made[last.path] = _folded(last.path, fold(target, shift=shift))
        return made


def _folded(path: str, module: nn.Module | None) -> nn.Module:
    if module is None:
        raise Unsupported(f"{path} is no plain map to absorb it")
    return module


def _refuse_zeros(divisor: Tensor, name: str) -> None:
    if zeros := int(torch.count_nonzero(divisor == 0)):
        raise Unsupported(f"{name} is 0 in {zeros} channels, and folding would divide by it")

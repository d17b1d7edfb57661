"""Every method of the registry, with those of its options that say where and how wide."""

from __future__ import annotations

import random
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from ..core.method import METHODS, Method
from ..core.site import Role
from ..tuning.adapter_files import construct
from ..values import Index, Width, hints, options
from .space import Genes, Space

TIMES = (0.25, 0.5, 1, 2, 4)
"""What a width is multiplied by."""
PLACES = (Role.QKV, Role.PROJ, Role.FC1, Role.FC2)
"""The maps of a block, for options that take roles: each alone, and all of them."""
METHOD = "method"


def axes(method: type[Method]) -> dict[str, tuple[object, ...]]:
    """List a method's options that may be chosen: how wide, where, and which variant.

    Args:
        method: Its class.

    Returns:
        Values by option, as plain data, of those that are a width, an index of a block, a choice of
            names or roles, or a switch. Rates, scales and the like stay at their default.
    """
    found: dict[str, tuple[object, ...]] = {}
    defaults: dict[str, Any] = {f.name: f.default for f in options(method)}
    for name, hint in hints(method).items():
        own = defaults[name]
        optional = get_origin(hint) in {types.UnionType, Union} and Width in get_args(hint)
        if hint == Width or optional and own:
            found[name] = tuple(sorted({max(1, int(own * times)) for times in TIMES}))
        elif hint == Index:
            found[name] = tuple(sorted({0, own // 2, own}))
        elif get_origin(hint) is Literal:
            found[name] = get_args(hint)
        elif hint is bool:
            found[name] = (False, True)
        elif hint == tuple[Role, ...]:
            every = [str(r) for r in PLACES]
            found[name] = ([str(r) for r in own], *([r] for r in every), every)
    return {name: values for name, values in found.items() if len(values) > 1}


@dataclass(frozen=True)
class MethodSpace(Space):
    """Which method, where it acts, and how wide; every option from `axes`.

    Mutation: with `mutate_method` another method is drawn; else each option with `mutate_option`.
    Crossover: two of one method share their options out; of two methods either is taken whole.

    Attributes:
        methods: Options to choose from, by method.
        mutate_method: Probability that a mutant is of another method.
        mutate_option: Probability that an option is drawn anew.
    """

    methods: Mapping[str, Mapping[str, Sequence[Any]]]
    mutate_method: float = 0.2
    mutate_option: float = 0.4

    def draw(self, rng: random.Random) -> Genes:
        """Draw a method, and each of its options."""
        name = rng.choice(sorted(self.methods))
        return {METHOD: name, **{k: rng.choice(v) for k, v in self.methods[name].items()}}

    def mutate(self, genes: Genes, rng: random.Random) -> Genes:
        """Draw another method, or some options anew."""
        if rng.random() < self.mutate_method:
            return self.draw(rng)
        changed = dict(genes)
        for name, values in self.methods[genes[METHOD]].items():
            if rng.random() < self.mutate_option:
                changed[name] = rng.choice(values)
        return changed

    def cross(self, one: Genes, other: Genes, rng: random.Random) -> Genes:
        """Share options out between two of one method, or take one of two."""
        if one[METHOD] != other[METHOD]:
            return rng.choice((one, other))
        return {name: rng.choice((one, other))[name] for name in one}

    def method(self, genes: Genes) -> Method:
        """Make a candidate's method."""
        return construct({"name": genes[METHOD], **{k: v for k, v in genes.items() if k != METHOD}})


def every_method(mutate_method: float = 0.2, mutate_option: float = 0.4) -> MethodSpace:
    """Make the space of all registered methods.

    Args:
        mutate_method: Probability that a mutant is of another method.
        mutate_option: Probability that an option is drawn anew.

    Returns:
        The space. What a backbone cannot have is refused as candidates come up.
    """
    return MethodSpace({n: axes(m) for n, m in METHODS.items()}, mutate_method, mutate_option)

"""Options of a search."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from ..errors import InputError
from ..planning.search import parse_bytes
from ..training.config import LearningRate
from ..values import MANY, Count, Index, Width, Within, read_fields
from .evolve import Breeding


@dataclass(frozen=True)
class Search:
    """Options of a search; the defaults are the paper's for VTAB-1k.

    Attributes:
        over: What is searched: widths (NOAH's, on shared weights) or methods (every method of the
            registry with where it acts and how wide, each candidate trained by itself).
        widths: Widths to choose from, for each block and part.
        depths: How many blocks, from the first, a part may be in; by default a quarter, a half,
            three quarters and all.
        most_trained: Most parameters a candidate trains, the classifier apart; 0: any number.
        most_memory: Most bytes of a candidate's training step as planned, such as 64MiB.
        supernet_epochs: Passes over the training images with shared weights.
        supernet_lr: Peak learning rate of these.
        generations: How many, the random first one included.
        population: Candidates of each.
        parents: How many of the best so far have children.
        mutants: Changed parents in a generation.
        crossovers: Children of two parents in a generation.
        mutate_part: Probability that a part of a parent is looked at; over methods, that a mutant
            is of another method.
        mutate_depth: Probability that its depth is then drawn anew; over methods, an option.
        trial_epochs: Over methods: passes over the training images by which a candidate is scored.
    """

    over: Literal["widths", "methods"] = "widths"
    widths: tuple[Width, ...] = (1, 5, 10)
    depths: tuple[Index, ...] = ()
    most_trained: Annotated[int, Within(0, 10**12)] = 640_000
    most_memory: str | None = None
    supernet_epochs: Count = 500
    supernet_lr: LearningRate = 5e-4
    generations: Count = 15
    population: Count = 50
    parents: Count = 10
    mutants: Annotated[int, Within(0, MANY)] = 25
    crossovers: Annotated[int, Within(0, MANY)] = 25
    mutate_part: Annotated[float, Within(0, 1)] = 0.2
    mutate_depth: Annotated[float, Within(0, 1)] = 0.4
    trial_epochs: Count = 5

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in read_fields(type(self), given).items():
            object.__setattr__(self, name, value)
        if not self.widths:
            raise InputError("widths must hold one number at least, such as 1,5,10")
        if self.most_memory is not None:
            parse_bytes(self.most_memory)

    def breeding(self, seed: int) -> Breeding:
        """Give the options of a generation.

        Args:
            seed: Decides every draw.

        Returns:
            The numbers.
        """
        own = {f.name: getattr(self, f.name) for f in fields(Breeding) if f.name != "seed"}
        return Breeding(seed=seed, **own)

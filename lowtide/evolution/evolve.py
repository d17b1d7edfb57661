"""Evolution under limits, as NOAH and AutoFormer have it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from ..errors import InputError
from .space import Genes, Space, name_of

TRIES = 10
"""Draws of a mutant or a crossover for each that is wanted; then random ones fill up."""
MOST_DRAWS = 50
"""Random draws for each that is wanted, after which the generation stays smaller."""


@dataclass(frozen=True)
class Cost:
    """Trained parameters and bytes of a candidate.

    Attributes:
        trained: Parameters that train, the classifier apart.
        peak_bytes: Planned peak of a training step; None where memory has no limit.
    """

    trained: int
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Candidate:
    """A candidate that was scored.

    Attributes:
        genes: What is chosen for it.
        generation: In which it came up, from 0.
        origin: `random`, `mutation` or `crossover`.
        cost: What it takes.
        score: On the validation images; higher is better.
    """

    genes: Genes
    generation: int
    origin: str
    cost: Cost
    score: float

    def to_dict(self) -> dict[str, object]:
        """Give it as plain data.

        Returns:
            Its fields by name.
        """
        return asdict(self)


@dataclass(frozen=True)
class Breeding:
    """Options of a generation.

    Attributes:
        generations: How many, the random first one included.
        population: Candidates of each.
        parents: How many of the best so far have children.
        mutants: Changed parents in a generation after the first.
        crossovers: Children of two parents there.
        seed: Decides every draw.
    """

    generations: int = 15
    population: int = 50
    parents: int = 10
    mutants: int = 25
    crossovers: int = 25
    seed: int = 0


def evolve(
    space: Space,
    breeding: Breeding,
    allowed: Callable[[Genes], Cost | None],
    score: Callable[[Genes], float],
) -> Iterator[list[Candidate]]:
    """Search generation by generation. The same calls give the same generations.

    The first generation is random. Each later one holds mutants and crossovers of the best parents
    of all generations so far, topped up at random; no candidate comes twice.

    Args:
        space: What to choose from.
        breeding: How generations are made.
        allowed: Gives what a candidate takes, or None where it is over a limit.
        score: Scores an allowed one; higher is better.

    Yields:
        The scored candidates of each generation.

    Raises:
        InputError: No candidate is within the limits.
    """
    known: list[Candidate] = []
    for generation in range(breeding.generations):
        rng = random.Random(f"{breeding.seed}/{generation}")
        parents = best_first(known)[: breeding.parents]
        found = _bred(space, breeding, parents, {name_of(c.genes) for c in known}, allowed, rng)
        fresh = [
            Candidate(genes, generation, origin, cost, score(genes))
            for origin, genes, cost in found
        ]
        if not known and not fresh:
            raise InputError(
                f"none of {MOST_DRAWS * breeding.population} candidates is within the limits: give"
                " more --most-trained or --most-memory, or narrower --widths"
            )
        known += fresh
        yield fresh


def best_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Order candidates by score; of equals the one that trains least, then the earlier one.

    Args:
        candidates: Scored ones.

    Returns:
        The same, best first.
    """
    return sorted(candidates, key=lambda c: (-c.score, c.cost.trained))


def _bred(
    space: Space,
    breeding: Breeding,
    parents: Sequence[Candidate],
    met: set[str],
    allowed: Callable[[Genes], Cost | None],
    rng: random.Random,
) -> list[tuple[str, Genes, Cost]]:
    """Make a generation's candidates, not scored yet."""

    def pick() -> Genes:
        return rng.choice(parents).genes

    found: list[tuple[str, Genes, Cost]] = []
    makers: list[tuple[str, int, int, Callable[[], Genes]]] = []
    if parents:
        makers += [
            ("mutation", breeding.mutants, TRIES, lambda: space.mutate(pick(), rng)),
            ("crossover", breeding.crossovers, TRIES, lambda: space.cross(pick(), pick(), rng)),
        ]
    makers.append(("random", breeding.population, MOST_DRAWS, lambda: space.draw(rng)))
    for origin, wanted, tries, make in makers:
        full = min(len(found) + wanted, breeding.population)
        for _ in range(tries * wanted):
            if len(found) >= full:
                break
            genes = make()
            name = name_of(genes)
            if name in met:
                continue
            met.add(name)
            cost = allowed(genes)
            if cost is not None:
                found.append((origin, genes, cost))
    return found

"""The space, and the evolution over it: what is drawn, kept, within the limits and gone on with."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from lowtide.errors import InputError
from lowtide.evolution.evolve import Breeding, Candidate, Cost, best_first, evolve
from lowtide.evolution.journal import Journal
from lowtide.evolution.search import remembered
from lowtide.evolution.space import Genes, name_of
from lowtide.evolution.widths import WidthSpace, quarters
from lowtide.methods.noah import PARTS

SPACE = WidthSpace(12, (1, 5, 10), (3, 6, 9, 12), PARTS)


def total(genes: Genes) -> int:
    return sum(sum(genes[part]) for part in PARTS)


def score(genes: Genes) -> float:
    """A sum over the parts, so that a child may have the best of two parents."""
    return sum(w / (1 + depth) for part in PARTS for depth, w in enumerate(genes[part]))


def test_the_depths_are_quarters_of_the_blocks() -> None:
    assert quarters(12) == (3, 6, 9, 12)
    assert quarters(6) == (2, 3, 5, 6)
    assert quarters(2) == (1, 2)


def test_every_depth_and_width_is_drawn_alike() -> None:
    rng = random.Random(0)
    drawn = [SPACE.draw(rng)[part] for _ in range(1000) for part in PARTS]
    depths = Counter(sum(w > 0 for w in widths) for widths in drawn)
    widths = Counter(w for one in drawn for w in one if w)
    assert all(len(w) == 12 and not any(w[sum(x > 0 for x in w) :]) for w in drawn)
    for counted, wanted in ((depths, (3, 6, 9, 12)), (widths, (1, 5, 10))):
        assert set(counted) == set(wanted)
        share = sum(counted.values()) / len(wanted)
        assert all(abs(n / share - 1) < 0.1 for n in counted.values())


def test_a_mutant_is_cut_or_drawn_on() -> None:
    rng = random.Random(1)
    space = replace(SPACE, mutate_part=0.5, mutate_depth=0.5)
    parent = space.draw(rng)
    changed = 0
    for _ in range(500):
        child = space.mutate(parent, rng)
        for part in PARTS:
            was, now = (sum(w > 0 for w in g[part]) for g in (parent, child))
            assert now in space.depths
            assert child[part][: min(was, now)] == parent[part][: min(was, now)]
            changed += child[part] != parent[part]
    expected = 1500 * 0.25 * 0.75  # one depth in four is the old one
    assert abs(changed / expected - 1) < 0.15
    assert space.mutate(parent, rng) is not parent


def test_a_child_takes_each_part_whole() -> None:
    rng = random.Random(2)
    one, other = SPACE.draw(rng), SPACE.draw(rng)
    origins = set()
    for _ in range(60):
        child = SPACE.cross(one, other, rng)
        assert all(child[part] in (one[part], other[part]) for part in PARTS)
        origins.add(tuple(child[part] == one[part] for part in PARTS))
    assert len(origins) == 8


def run(breeding: Breeding, most: int = 10**9, scored: object = score) -> list[list[Candidate]]:
    def allowed(genes: Genes) -> Cost | None:
        return Cost(total(genes)) if total(genes) <= most else None

    return list(evolve(SPACE, breeding, allowed, scored))  # type: ignore[arg-type]


def test_generations_have_the_paper_s_numbers_and_no_candidate_twice() -> None:
    done = run(Breeding(seed=3))
    assert [len(g) for g in done] == [50] * 15
    every = [c for g in done for c in g]
    assert len({name_of(c.genes) for c in every}) == len(every) == 750
    assert {c.origin for c in done[0]} == {"random"}
    assert Counter(c.origin for c in done[1]) == {"mutation": 25, "crossover": 25}
    for generation in done[1:]:
        kinds = Counter(c.origin for c in generation)
        assert kinds["mutation"] <= 25 and kinds["crossover"] <= 25
    assert every[0].generation == 0 and every[-1].generation == 14


def test_children_are_of_the_best_so_far() -> None:
    done = run(Breeding(generations=4, seed=4))
    for n in range(1, 4):
        parents = best_first([c for g in done[:n] for c in g])[:10]
        for child in done[n]:
            if child.origin == "crossover":
                for part in PARTS:
                    assert child.genes[part] in [p.genes[part] for p in parents]


def test_it_finds_better_ones_than_random_draws() -> None:
    found = max(c.score for g in run(Breeding(seed=5)) for c in g)
    rng = random.Random(5)
    drawn = max(score(SPACE.draw(rng)) for _ in range(750))
    assert found > drawn


def test_no_candidate_is_over_the_limit() -> None:
    done = run(Breeding(generations=3, seed=6), most=100)
    assert all(total(c.genes) == c.cost.trained <= 100 for g in done for c in g)
    assert sum(map(len, done)) > 100
    with pytest.raises(InputError, match="within the limits"):
        run(Breeding(generations=1, population=3), most=1)


def test_the_same_seed_is_the_same_search_and_another_is_not() -> None:
    few = Breeding(generations=3, population=8, parents=3, mutants=3, crossovers=3, seed=7)
    assert run(few) == run(few) != run(replace(few, seed=8))


def test_of_equal_scores_the_smaller_comes_first() -> None:
    some = [Candidate({"n": n}, 0, "random", Cost(n), 0.5) for n in (3, 1, 2)]
    assert [c.cost.trained for c in best_first(some)] == [1, 2, 3]


@pytest.mark.parametrize("stop", [1, 7, 9, 16, 23])
def test_a_search_that_is_killed_goes_on_to_the_same_end(tmp_path, stop: int) -> None:
    few = Breeding(generations=3, population=8, parents=3, mutants=3, crossovers=3, seed=9)
    whole = run(few)
    calls: list[str] = []

    def once(genes: Genes) -> float:
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(name_of(genes))
        return score(genes)

    path = tmp_path / "j"
    with pytest.raises(KeyboardInterrupt):
        run(few, scored=remembered(Journal(path), once))
    with path.open("a") as file:
        file.write('{"genes": {"prompts"')  # a line that the kill cut short
    stop = -1
    assert run(few, scored=remembered(Journal(path), once)) == whole
    assert len(calls) == len(set(calls)) == sum(map(len, whole))

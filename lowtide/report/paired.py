"""Methods on the same test images: McNemar's test, a paired bootstrap, Holm's correction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..training.predictions import Predictions, read_predictions
from .cells import Cell, Column, Table, number
from .compare import LEVEL
from .rows import Entry
from .tables import Board

DRAWS = 10_000
AT_ONCE = 256
"""Draws that are in memory at once."""
FEWEST = 2
"""Methods of which a comparison is made."""
MISSING = "kept no answers for each test image (written by an earlier version, or no classifier)"

Right = NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """How one method compares with another on the same images.

    Attributes:
        one: The better method.
        other: The other.
        mean: Difference of their accuracies.
        low: Lower end of its 95 % interval, from the bootstrap.
        high: Its upper end.
        mcnemar: p by seed.
        p: Of the whole comparison: McNemar's of one seed, the bootstrap's of several.
        corrected: The same by Holm over the table.
    """

    one: str
    other: str
    mean: float
    low: float
    high: float
    mcnemar: tuple[float, ...]
    p: float
    corrected: float

    @property
    def holds(self) -> bool:
        """Whether the difference is significant at 5 %, over the whole table."""
        return self.corrected < LEVEL


def mcnemar(one: Right, other: Right) -> float:
    """Test whether two classifiers err equally often, exactly (McNemar 1947).

    Of the images that only one of them has right, b and c, each is as likely the one's as the
    other's: p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2).

    Args:
        one: Which images one has right, `(N,)`.
        other: The same of the other.

    Returns:
        The probability, from both sides; 1 where they agree on every image.
    """
    b, c = int((one & ~other).sum()), int((other & ~one).sum())
    return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def bootstrap(rights: Mapping[str, Right], draws: int = DRAWS) -> dict[str, NDArray[np.float64]]:
    """Draw test images and seeds anew, the same for all methods.

    The mean over S seeds and N images becomes one over seeds and images drawn with replacement.
    Few seeds drawn so vary too little, by (S - 1) / S; their counts are moved away from 1 by
    sqrt(S / (S - 1)), which mends it (Rao and Wu 1988).

    Args:
        rights: Of each method which answers are right, `(S, N)`, the same seeds and images.
        draws: How often.

    Returns:
        Accuracies of each draw by method.
    """
    seeds, images = next(iter(rights.values())).shape
    values = np.stack([r.astype(float) for r in rights.values()])
    generator, parts = np.random.default_rng(0), []
    scale = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
    for start in range(0, draws, AT_ONCE):
        size = min(AT_ONCE, draws - start)
        of_images = generator.multinomial(images, np.full(images, 1 / images), size) / images
        counts = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size)
        of_seeds = (1 + scale * (counts - 1)) / seeds
        by_seed = np.einsum("msn,dn->mds", values, of_images, optimize=True)
        parts.append((by_seed * of_seeds).sum(-1))
    return dict(zip(rights, np.concatenate(parts, 1), strict=True))


def holm(ps: Sequence[float]) -> list[float]:
    """Correct for the number of tests (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1, is at least what a smaller one became, and
    at most 1.

    Args:
        ps: Probabilities.

    Returns:
        Corrected ones, in the same order.
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def differences(rights: Mapping[str, Right]) -> list[Difference]:
    """Compare every two methods.

    Args:
        rights: Of each method which answers are right, `(S, N)`, the same seeds and images.

    Returns:
        One for each pair, the better first, by falling difference.
    """
    order = sorted(rights, key=lambda name: -float(rights[name].mean()))
    drawn = bootstrap({name: rights[name] for name in order})
    found = []
    for one, other in itertools.combinations(order, 2):
        mean = float(rights[one].mean() - rights[other].mean())
        moved = drawn[one] - drawn[other]
        low, high = np.quantile(moved, (0.025, 0.975))
        by_seed = tuple(map(mcnemar, rights[one], rights[other]))
        beyond = int((abs(moved - mean) >= abs(mean) - 1e-12).sum())
        p = by_seed[0] if len(by_seed) == 1 else (1 + beyond) / (1 + len(moved))
        found.append(Difference(one, other, mean, float(low), float(high), by_seed, p, p))
    corrected = holm([d.p for d in found])
    found = [
        Difference(**{**vars(d), "corrected": p}) for d, p in zip(found, corrected, strict=True)
    ]
    return sorted(found, key=lambda d: -d.mean)


def paired(entries: Sequence[Entry]) -> tuple[dict[str, Right], list[int], list[str]]:
    """Find what can be compared image by image.

    Args:
        entries: The methods on one data set.

    Returns:
        Of each method which answers are right, `(S, N)`; the seeds, which all have; and what is to
        be said of those that are left out.
    """
    kept: dict[str, dict[int, Predictions]] = {}
    for e in entries:
        rows = zip(e.result.folders, e.result.runs, strict=True)
        read = {r.config.seed: read_predictions(f) for f, r in rows if r.tested is not None}
        if read and None not in read.values():
            kept[e.label] = {seed: p for seed, p in read.items() if p is not None}
    without = [e.label for e in entries if e.runs and e.label not in kept]
    notes = [f"{', '.join(without)}: {MISSING}"] if without else []
    if len(kept) < FEWEST:
        return {}, [], notes
    seeds = sorted(set.intersection(*(set(runs) for runs in kept.values())))
    images = {runs[seed].images for runs in kept.values() for seed in seeds}
    if len(images) != 1:
        why = (
            "the methods have no seed in common" if not seeds else "the rows saw other test images"
        )
        return {}, [], [*notes, f"not compared image by image: {why}"]
    rights = {
        label: np.stack([runs[seed].right.numpy() for seed in seeds])
        for label, runs in kept.items()
    }
    return rights, seeds, notes


def paired_table(board: Board) -> Table | None:
    """Tell which differences hold on one data set.

    Args:
        board: The methods.

    Returns:
        One row per pair of methods; None where there are no two methods.
    """
    if sum(bool(e.runs) for e in board.entries) < FEWEST:
        return None
    rights, seeds, notes = paired(board.entries)
    pairs = differences(rights) if rights else []
    test = "McNemar's test" if len(seeds) == 1 else "bootstrap over images and seeds"
    title = f"{board.data}: which differences hold, on the same test images"
    if pairs:
        held = sum(d.holds for d in pairs)
        notes = [
            f"{held} of {len(pairs)} differences hold (p < {LEVEL} by Holm over this table; p of"
            f" the {test}; seeds {', '.join(map(str, seeds))}).",
            *notes,
        ]
    heads = ("points", "95 % of", "McNemar's p by seed", "p", "p, Holm")
    columns = (Column("better", False), Column("than", False), *map(Column, heads))
    return Table(title, (*columns, Column("holds", False)), tuple(map(_row, pairs)), tuple(notes))


def _row(d: Difference) -> tuple[Cell, ...]:
    return (
        Cell(d.one, d.one),
        Cell(d.other, d.other),
        number(d.mean, "+.2f", 1e-2),
        Cell(f"{100 * d.low:+.2f} to {100 * d.high:+.2f}", d.low),
        Cell(", ".join(f"{p:.2g}" for p in d.mcnemar), min(d.mcnemar)),
        number(d.p, ".2g"),
        number(d.corrected, ".2g"),
        Cell("yes" if d.holds else "no", float(d.holds)),
    )

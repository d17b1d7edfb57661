"""Compare methods: the best, those no worse within chance, and what makes rows incomparable."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

from ..training.summary import RunSummary
from .rows import Entry

LEVEL = 0.05
NO_TEST = "no test with fewer than two seeds each"


@dataclass(frozen=True)
class Verdict:
    """How a method compares with the best of its data set.

    Attributes:
        best: Whether it is the best, or as good to the last digit.
        p: Probability of a difference at least as large if both were equally good.
        test: What gave `p`.
    """

    best: bool
    p: float
    test: str

    @property
    def close(self) -> bool:
        """Whether the method is not the best, but no worse within chance."""
        return not self.best and self.p >= LEVEL


def judge(entries: Iterable[Entry]) -> dict[str, Verdict]:
    """Compare the methods on one data set with the best of them.

    Args:
        entries: One per method.

    Returns:
        Verdicts by label, of the methods that have a test accuracy.
    """
    scored = {e.label: (e.accuracy, e) for e in entries}
    known = {label: (a, e) for label, (a, e) in scored.items() if a is not None}
    if not known:
        return {}
    top, best = max(known.values(), key=lambda pair: pair[0])
    return {label: Verdict(a == top, *p_value(e, best)) for label, (a, e) in known.items()}


def p_value(one: Entry, other: Entry) -> tuple[float, str]:
    """Test whether two methods are equally accurate, from both sides.

    With two or more seeds each, Welch's t-test on the accuracies of the seeds (Welch 1947,
    Biometrika 34): t = (m1 - m2) / sqrt(s1^2 / n1 + s2^2 / n2). With fewer, or where no seed
    differs from another, the z-test of two proportions with a common variance on the test images:
    z = (p1 - p2) / sqrt(p (1 - p) (1 / k1 + 1 / k2)), p the share right among all k1 + k2; it knows
    nothing of the spread over seeds, nor that both saw the same images. A score that is no share of
    images right, such as mAP or R^2, is not tested with fewer seeds, and nothing is told apart.

    Args:
        one: A method on a data set.
        other: Another on the same data.

    Returns:
        The probability, and the name of the test.
    """
    a, b = one.accuracies, other.accuracies
    if min(len(a), len(b)) > 1 and ((one.spread or 0) > 0 or (other.spread or 0) > 0):
        found = stats.ttest_ind_from_stats(
            fmean(a), one.spread, len(a), fmean(b), other.spread, len(b), equal_var=False
        )
        return float(found.pvalue), "Welch's t-test over seeds"
    if one.metric != "accuracy":
        return 1.0, NO_TEST
    p1, p2, k1, k2 = fmean(a), fmean(b), one.images, other.images
    common = (k1 * p1 + k2 * p2) / (k1 + k2) if k1 + k2 else 0.0
    error = math.sqrt(common * (1 - common) * (1 / k1 + 1 / k2)) if k1 and k2 else 0.0
    p = math.erfc(abs(p1 - p2) / error / math.sqrt(2)) if error else float(p1 == p2)
    return p, "z-test of two proportions on the test images"


def averages(by_data: Mapping[str, float], groups: Mapping[str, str]) -> tuple[float, float]:
    """Average over data sets in both ways that papers average over VTAB-1k.

    Args:
        by_data: One number per data set.
        groups: Group of each data set.

    Returns:
        Mean of the means of the groups; mean over the data sets.
    """
    by_group: dict[str, list[float]] = {}
    for data, value in by_data.items():
        by_group.setdefault(groups[data], []).append(value)
    return fmean(fmean(values) for values in by_group.values()), fmean(by_data.values())


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points that no other one beats: less cost and at least the value, or the reverse.

    Args:
        points: Cost and value of each.

    Returns:
        Their indices by rising cost.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept


def warnings(entries: Sequence[Entry]) -> list[str]:
    """Say why numbers of one data set may not be comparable.

    Args:
        entries: Every method on one backbone and one data set.

    Returns:
        One sentence per reason.
    """
    found = []
    if odd := _odd(entries, lambda r: r.data.fingerprint, by_seed=True):
        found.append(f"other images or splits than most rows (by data fingerprint): {odd}")
    if odd := _odd(entries, lambda r: json.dumps(r.preprocessing, sort_keys=True)):
        found.append(f"other pre-processing than most rows: {odd}")
    if odd := _odd(entries, lambda r: r.config.batch_size):
        found.append(f"another batch size than most rows, so peak and time do not compare: {odd}")
    if odd := _odd(entries, _timed_on):
        found.append(f"steps timed on another device or with other threads than most: {odd}")
    return found


def _timed_on(run: RunSummary) -> Hashable:
    return run.environment.device_name, run.environment.threads


def _odd(
    entries: Sequence[Entry], key: Callable[[RunSummary], Hashable], *, by_seed: bool = False
) -> str:
    """Name the methods with a row that differs from most; splits may be drawn by the seed."""
    kinds: dict[int, Counter[Hashable]] = {}
    for e in entries:
        for r in e.runs:
            kinds.setdefault(r.config.seed * by_seed, Counter())[key(r)] += 1
    usual = {seed: counts.most_common(1)[0][0] for seed, counts in kinds.items()}
    return ", ".join(
        e.label for e in entries if any(key(r) != usual[r.config.seed * by_seed] for r in e.runs)
    )

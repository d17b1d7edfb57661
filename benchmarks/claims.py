"""Hold the claims of the four papers against what was measured here: the tables of docs/claims.md.

    python -m benchmarks.claims

Accuracies are those of the rows in `results/`, compared task by task and seed by seed; peaks are
planned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev

from scipy import stats

from benchmarks.results import insert
from lowtide import METHODS, StepConfig, plan
from lowtide.bench import read_results
from lowtide.bench.suite import SUITE
from lowtide.planning.simulate import tune_on_meta

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs/claims.md", ROOT / "results"
NOTHING_TRANSFERS = "coil20_pose"
"""A task on which no method is better than chance: its differences say nothing."""

Setting = tuple[str, str, str]
"""Model, method and policy of a planned step."""


@dataclass(frozen=True)
class Accuracy:
    """A claim that one method is as good as another, or better.

    Attributes:
        paper: Who claims it.
        says: What.
        better: Label of the one.
        worse: Label of the other.
        within: Points they may differ by, where they are claimed to be equal.
    """

    paper: str
    says: str
    better: str
    worse: str
    within: float | None = None

    def verdict(self, low: float, high: float) -> str:
        """Judge an interval of the difference, in points."""
        margin = 0.0 if self.within is None else self.within
        if self.within is not None and low >= -margin and high <= margin:
            return "held"
        if self.within is None and low > 0:
            return "held"
        apart = high < -margin or (self.within is not None and low > margin)
        return "failed" if apart else "cannot be told"


@dataclass(frozen=True)
class Memory:
    """A claim on the memory of a step.

    Attributes:
        paper: Who claims it.
        says: What.
        less: What should need less.
        more: What should need more.
        times: How many times more.
    """

    paper: str
    says: str
    less: Setting
    more: Setting
    times: float


@dataclass(frozen=True)
class Count:
    """A claimed number of trained parameters of ViT-B/16.

    Attributes:
        paper: Who prints it.
        method: Whose.
        head: Parameters of the classifier in it.
        millions: As printed.
    """

    paper: str
    method: str
    head: int
    millions: str


VIT, SWIN = "vit_base_patch16_224", "swin_base_patch4_window7_224"
CONVNEXT = "convnext_base"

ACCURACIES = (
    Accuracy("S2A", "its quantisation costs at most 0.4 points", "S2A, tight", "S2A", 0.4),
    Accuracy("S2A", "better than LoRA", "S2A", "LoRA"),
    Accuracy("S2A", "better than a linear probe", "S2A", "linear"),
    Accuracy("SSF", "better than LoRA", "SSF", "LoRA"),
    Accuracy("SSF", "better than VPT-deep", "SSF", "VPT-deep"),
    Accuracy("SSF", "better than bias", "SSF", "bias"),
    Accuracy("RLRR", "better than SSF", "RLRR", "SSF"),
    Accuracy("RLRR", "better than LoRA", "RLRR", "LoRA"),
    Accuracy("RLRR", "better than FacT-TT", "RLRR", "FacT-TT"),
    Accuracy("DTL", "DTL+ better than LoRA", "DTL+", "LoRA"),
    Accuracy("DTL", "DTL+ better than DTL", "DTL+", "DTL"),
    Accuracy("DTL", "DTL better than LST", "DTL", "LST"),
)
MEMORIES = (
    Memory("S2A", "6.4 times, full ViT-B/16", (VIT, "s2a", "s2a"), (VIT, "full", "exact"), 6.4),
    Memory("S2A", "8.6 times, full Swin-B", (SWIN, "s2a", "s2a"), (SWIN, "full", "exact"), 8.6),
    Memory(
        *("S2A", "9.7 times, full ConvNeXt-B"),
        *((CONVNEXT, "s2a", "s2a"), (CONVNEXT, "full", "exact"), 9.7),
    ),
    Memory("S2A", "3.5 times, LoRA", (VIT, "s2a", "s2a"), (VIT, "lora", "exact"), 3.5),
    Memory("S2A", "3 times, by its codes", (VIT, "s2a", "s2a"), (VIT, "s2a", "exact"), 3),
    Memory("DTL", "2.9 times, full", (VIT, "dtl", "exact"), (VIT, "full", "exact"), 2.9),
    Memory("S2A", "the first, by `tight`", (VIT, "s2a", "tight"), (VIT, "full", "exact"), 6.4),
    Memory("S2A", "the second, by `tight`", (SWIN, "s2a", "tight"), (SWIN, "full", "exact"), 8.6),
    Memory(
        *("S2A", "the third, by `tight`"),
        *((CONVNEXT, "s2a", "tight"), (CONVNEXT, "full", "exact"), 9.7),
    ),
)
VTAB = 38_045
"""Parameters of ViT-B/16's classifier with VTAB-1k's mean number of classes."""
COUNTS = (
    Count("SSF", "ssf", VTAB, "0.24"),
    Count("RLRR", "rlrr", VTAB, "0.33"),
    Count("RLRR", "arc", VTAB, "0.13"),
    Count("RLRR", "bias", VTAB, "0.14"),
    Count("RLRR", "full", VTAB, "85.84"),
    Count("DTL", "dtl", 0, "0.04"),
    Count("DTL", "lora", 0, "0.29"),
)


def main() -> None:
    """Judge every claim, and write the page's tables."""
    insert(PAGE, "accuracy", table(list(accuracies())))
    insert(PAGE, "parameters", table(list(counts())))
    insert(PAGE, "memory", table(list(memories())))


def counts() -> Iterator[list[str]]:
    """Count what each method trains on ViT-B/16.

    Yields:
        The head of a table, then a row for each claim.
    """
    yield ["paper", "method", "printed, M", "here", "verdict"]
    for claim in COUNTS:
        tuned = tune_on_meta(VIT, METHODS[claim.method](), num_classes=1)
        classifier = sum(
            p.numel() for h in tuned.heads for p in tuned.model.get_submodule(h).parameters()
        )
        number = tuned.trainable_counts()[0] - classifier + claim.head
        digits = len(claim.millions.partition(".")[2])
        verdict = "held" if f"{number / 1e6:.{digits}f}" == claim.millions else "failed"
        yield [claim.paper, claim.method, claim.millions, f"{number:,}", verdict]


def accuracies() -> Iterator[list[str]]:
    """Compare the rows of both methods on every task that has both.

    Yields:
        The head of a table, then a row for each claim.
    """
    yield ["paper", "claim", "tasks", "seeds", "difference, points", "95 % interval", "verdict"]
    found = tested()
    for claim in ACCURACIES:
        tasks = [
            [100 * (x[seed] - y[seed]) for seed in x.keys() & y.keys()]
            for task in {t for label, t in found if label == claim.better}
            if (x := found[claim.better, task]) and (y := found.get((claim.worse, task)))
        ]
        tasks = [differences for differences in tasks if differences]
        told = [claim.paper, claim.says, str(len(tasks)), str(sum(map(len, tasks)))]
        if len(tasks) < 2:
            yield [*told, "", "", "cannot be told"]
            continue
        low, high = interval([mean(t) for t in tasks])
        middle = mean(mean(t) for t in tasks)
        yield [*told, f"{middle:+.1f}", f"{low:+.1f} to {high:+.1f}", claim.verdict(low, high)]


def tested() -> dict[tuple[str, str], dict[int, float]]:
    """Read the accuracy of every finished row.

    Returns:
        By label and task, the test accuracy of each seed.
    """
    found: dict[tuple[str, str], dict[int, float]] = {}
    for suite in sorted(p.parent for p in RESULTS.glob(f"*/{SUITE}")):
        for result in read_results(suite):
            if result.data != NOTHING_TRANSFERS:
                seeds = {
                    r.config.seed: r.tested
                    for r in result.runs
                    if r.tested is not None and r.metric == "accuracy"
                }
                found[result.label, f"{suite.name}/{result.data}"] = seeds
    return found


def interval(differences: list[float]) -> tuple[float, float]:
    """Bound the mean difference over tasks like these, by Student's t.

    Args:
        differences: One of each task, at least two.

    Returns:
        The ends of the 95 % interval.
    """
    n = len(differences)
    half = float(stats.t.ppf(0.975, n - 1)) * stdev(differences) / math.sqrt(n)
    return mean(differences) - half, mean(differences) + half


def memories() -> Iterator[list[str]]:
    """Plan both settings of every claim.

    Yields:
        The head of a table, then a row for each claim.
    """
    yield ["paper", "claim", "MiB", "against, MiB", "times", "verdict"]
    for claim in MEMORIES:
        less, more = peak(claim.less), peak(claim.more)
        held = "held" if more / less >= claim.times else "failed"
        sizes = [f"{less / 2**20:,.0f}", f"{more / 2**20:,.0f}"]
        yield [claim.paper, claim.says, *sizes, f"{more / less:.1f}", held]


@cache
def peak(setting: Setting) -> int:
    """Plan the peak of a step of 32 images in float32.

    Args:
        setting: Model, method and policy.

    Returns:
        Bytes.
    """
    model, method, policy = setting
    step = StepConfig(batch_size=32, policy=policy)
    return plan(model, METHODS[method](), step=step, num_classes=100).peak_bytes


def table(rows: list[list[str]]) -> str:
    """Write rows in Markdown.

    Args:
        rows: The head, then the rows.

    Returns:
        The table.
    """
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest))


if __name__ == "__main__":
    main()

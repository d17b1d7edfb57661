"""Find the settings that fit in a memory budget, fastest first."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..core.method import Method, method_name
from ..errors import InputError, UnknownName, Unsupported
from ..families import meta_copy
from ..memory.frozen_dtype import packable
from ..tuning.adapter_files import describe
from ..tuning.tuned import Tuned
from .cost_model import MACHINES
from .simulate import Plan, plan_on_shapes, tune_on_meta
from .step import StepConfig, shares_statistics

ALTERNATIVES: Mapping[str, tuple[Any, ...]] = {
    "policy": ("exact", "blocks", "tight"),
    "checkpointing": (False, True),
    "frozen_dtype": ("fp32", "bf16"),
}
"""Options that do not change what trains: the default, then what saves memory by more work."""
DECIDED = (*ALTERNATIVES, "recomputed_blocks", "accumulate")
"""Options of a step that a search decides where they are at their default."""
LOWER = 0.95
"""A peak is lower than another if it is this share of it at most."""
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Choice:
    """One way to stay within the budget.

    Attributes:
        method: What trains.
        step: The step, decided.
        plan: What the step needs.
        seconds: Predicted time of a step.
        lower: Of the fastest choice: what costs least time of all that was planned with a lower
            peak, if anything was.
    """

    method: Method
    step: StepConfig
    plan: Plan
    seconds: float
    lower: Choice | None = None

    def describe(self) -> str:
        """Write the choice in words.

        Returns:
            A phrase.
        """
        words = [f"{method_name(type(self.method))}, policy {self.step.policy}"]
        some = f" of the first {self.step.recomputed_blocks} blocks"
        some = some if self.step.recomputed_blocks else ""
        words += [f"checkpointing{some}"] if self.step.checkpointing else []
        words += [f"{self.step.frozen_dtype} frozen weights"]
        words += [f"micro-batches of {self.step.micro_batch}"]
        return ", ".join(words)

    @property
    def decided(self) -> dict[str, Any]:
        """The options of the step that the search decided, by name."""
        return {name: getattr(self.step, name) for name in DECIDED}

    def to_dict(self) -> dict[str, object]:
        """Give the choice as plain data.

        Returns:
            The options that make it, its plan, and the predicted seconds.
        """
        return {
            "method": describe(self.method),
            **self.decided,
            "predicted_seconds": self.seconds,
            "plan": self.plan.to_dict(),
        }


def parse_bytes(text: str) -> int:
    """Read a size.

    Args:
        text: A number of bytes, such as `640MiB`, `1.5GB`, `1GiB` or `2e9`.

    Returns:
        Bytes.

    Raises:
        InputError: It is no size.
    """
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([KMGT]?)(i?)(B?)", text.strip(), re.IGNORECASE)
    number = 0.0
    with contextlib.suppress(ValueError):
        number = float(found[1]) if found else 0.0
    if found is None or not 0 < number < 2**60 or (found[3] and not found[2]):
        raise InputError(f"{text!r} is no size in bytes: write 640MiB, 1GiB, 1.5GB or 2e9")
    return int(number * (1024 if found[3] else 1000) ** UNITS[found[2].upper()])


def search(
    model: str | nn.Module,
    *methods: Method,
    budget: int,
    step: StepConfig = StepConfig(),
    vary: Mapping[str, tuple[Any, ...]] = ALTERNATIVES,
    num_classes: int | None = None,
    image_size: int | None = None,
    machine: str = "cpu",
) -> list[Choice]:
    """Find what fits in a budget: for each method and setting the largest micro-batch.

    A setting is left out where one that keeps more and computes less already fits with the whole
    batch, and where its arithmetic alone takes longer than the fastest choice of its method so far.
    Where the search decides to recompute blocks, it recomputes as few as fit, from the first.
    Every choice is planned, not estimated.

    Args:
        model: A timm name, or a backbone, which is not changed.
        *methods: What might train, each by itself.
        budget: Bytes that a step may need.
        step: The step; its options that are at the first of their alternatives are varied, the
            others stay. A batch is cut into as few micro-batches as fit, unless the step says how
            many; and where its images share their statistics (BatchNorm that trains), into none.
        vary: Alternatives of options, the one that keeps most first.
        num_classes: Classes of the classifier; by default the backbone's.
        image_size: Side of the square input, for a model given by name.
        machine: Whose speed orders the choices, a key of `MACHINES`.

    Returns:
        The choices, fastest first.

    Raises:
        InputError: Nothing fits, or the step cannot be simulated.
        UnknownName: There is no such machine.
        Unsupported: No method can live on this backbone.
    """
    if machine not in MACHINES:
        raise UnknownName("machine", machine, MACHINES)
    free = {name: values for name, values in vary.items() if getattr(step, name) == values[0]}
    varied = itertools.product(*free.values())
    steps = [replace(step, **dict(zip(free, values, strict=True))) for values in varied]
    steps = list(dict.fromkeys(steps))  # a policy may take checkpointing
    choices: list[Choice] = []
    searches, refusals = [], []
    for method in methods:
        try:
            tuned = tune_on_meta(model, method, num_classes=num_classes, image_size=image_size)
        except Unsupported as refusal:
            refusals.append(refusal)
            continue
        found = _Search(tuned, method, budget, machine, "checkpointing" in free)
        choices += found.run(steps)
        searches.append(found)
    if refusals and not searches:
        raise refusals[0]
    if not choices:
        smallest = min((s.least for s in searches), key=lambda c: c.plan.peak_bytes)
        kept = step.accumulate == 1 and any(found.shared for found in searches)
        whole = "; micro-batches would change what BatchNorm trains on" if kept else ""
        raise InputError(
            f"nothing fits in {_mib(budget)}: the smallest possible peak is"
            f" {_mib(smallest.plan.peak_bytes)}, with {smallest.describe()}{whole}"
        )
    first, *others = sorted(choices, key=lambda c: (c.seconds, c.plan.peak_bytes))
    (found,) = (s for s in searches if s.method is first.method)
    return [replace(first, lower=found.lower(first, free)), *others]


@dataclass
class _Search:
    """The plans of one method."""

    tuned: Tuned
    method: Method
    budget: int
    machine: str
    counts: bool

    def __post_init__(self) -> None:
        self.tried: dict[StepConfig, Choice] = {}
        self.shared = shares_statistics(self.tuned.train())
        some_frozen, some_blocks = packable(self.tuned.backbone, "bf16"), self.tuned.recomputes
        works = {"frozen_dtype": any(some_frozen), "checkpointing": some_blocks}
        self.idle = {name for name, does in works.items() if not does}  # they change nothing here

    @property
    def least(self) -> Choice:
        """The smallest peak that was planned."""
        return min(self.tried.values(), key=lambda c: c.plan.peak_bytes)

    def run(self, steps: Sequence[StepConfig]) -> list[Choice]:
        """Give the largest micro-batch of each step that fits, where the step can gain."""
        choices: list[Choice] = []
        whole: list[StepConfig] = []
        for name in self.idle:
            steps = [s for s in steps if getattr(s, name) == ALTERNATIVES[name][0]] or steps
        for step in steps:
            if any(_keeps_no_more(step, other) for other in whole):
                continue
            choice = self._largest(step, min((c.seconds for c in choices), default=math.inf))
            if choice is not None:
                choices.append(self._fewest_blocks(choice))
                if choice.step == step:
                    whole.append(step)
        return choices

    def _largest(self, step: StepConfig, rival: float) -> Choice | None:
        """Find the largest micro-batch that fits."""
        given = self.shared or step.accumulate > 1
        cuts = [step.accumulate] if given else _cuts(step.batch_size)
        fits = self.at(replace(step, accumulate=cuts[0]))
        arithmetic = MACHINES[self.machine].arithmetic(fits.plan.work)
        if not self._fits(fits) or arithmetic > rival:
            return None
        steps = [replace(step, accumulate=cut) for cut in cuts]
        return self._last(steps, [step.micro_batch for step in steps], 1)

    def _fewest_blocks(self, choice: Choice) -> Choice:
        """Find how few blocks need to be recomputed; the last one's is in vain, mostly."""
        step, blocks = choice.step, self.tuned.recomputes
        if not (self.counts and step.checkpointing) or step.recomputed_blocks is not None:
            return choice
        fewer = [replace(step, recomputed_blocks=blocks - kept) for kept in range(1, blocks)]
        return self._last([step, *fewer], list(range(blocks)), blocks // 2)

    def _last(self, steps: Sequence[StepConfig], sizes: Sequence[int], aim: int) -> Choice:
        """Find the last step that fits, the first does; the peak grows, nearly in a line."""
        low, high, fits = 0, len(steps), self.at(steps[0])
        while high - low > 1:
            middle = min(max(aim, low + 1), high - 1)
            tried, apart = self.at(steps[middle]), sizes[middle] - sizes[low]
            slope = max(1, (tried.plan.peak_bytes - fits.plan.peak_bytes) / apart)
            full = sizes[low] + (self.budget - fits.plan.peak_bytes) / slope
            aim = sum(size <= full for size in sizes) - 1
            if self._fits(tried):
                low, fits = middle, tried
            else:
                high = middle
        return fits

    def lower(self, choice: Choice, vary: Mapping[str, tuple[Any, ...]]) -> Choice | None:
        """Find what costs least time of what has a lower peak: planned before, or one option on."""
        step = choice.step
        if step.recomputed_blocks is not None:
            self.at(replace(step, recomputed_blocks=None))
        for name, values in vary.items():
            place = values.index(getattr(step, name))
            if values[place + 1 :] and name not in self.idle:
                self._try(replace(step, **{name: values[place + 1]}))
        most = LOWER * choice.plan.peak_bytes
        below = [c for c in self.tried.values() if c.plan.peak_bytes <= most]
        return min(below, key=lambda c: (c.seconds, c.plan.peak_bytes), default=None)

    def _try(self, step: StepConfig) -> None:
        with contextlib.suppress(Unsupported):  # a policy may take blocks to recompute
            self.at(step)

    def _fits(self, choice: Choice) -> bool:
        return choice.plan.peak_bytes <= self.budget

    def at(self, step: StepConfig) -> Choice:
        """Plan one choice, once."""
        if step not in self.tried:
            tuned: Any = meta_copy(self.tuned)
            planned = plan_on_shapes(tuned, step)
            seconds = MACHINES[self.machine].seconds(planned.work)
            self.tried[step] = Choice(self.method, step, planned, seconds)
        return self.tried[step]


def _keeps_no_more(step: StepConfig, other: StepConfig) -> bool:
    """Say whether a step saves memory, at the price of work, wherever it differs from another."""
    return all(
        getattr(other, name) in (getattr(step, name), values[0])
        for name, values in ALTERNATIVES.items()
    )


def _cuts(batch: int) -> list[int]:
    """The ways to cut a batch, smallest micro-batch first, each size once, in the fewest parts."""
    return sorted({-(-batch // size) for size in range(1, batch + 1)}, reverse=True)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"

"""What fits in a memory budget, fastest first."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..core.graft import Method, method_name
from ..errors import InputError, UnknownName, Unsupported
from ..families import hollow
from ..memory.frozen_dtype import packable
from ..tuning.adapter_files import describe
from ..tuning.tuned import Tuned
from .cost_model import MACHINES
from .simulate import Plan, arrange, rehearse, shadow
from .step import StepConfig, couples

ALTERNATIVES: Mapping[str, tuple[Any, ...]] = {
    "policy": ("exact", "tight"),
    "checkpointing": (False, True),
    "frozen_dtype": ("fp32", "bf16"),
}
"""Options that do not change what trains: the default, then what saves memory by more work."""
DECIDED = (*ALTERNATIVES, "accumulate")
"""Options of a step that a search decides where they are at their default."""
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Choice:
    """One way to stay within the budget.

    Attributes:
        method: What trains.
        step: The step, decided.
        plan: What the step needs.
        seconds: Predicted time of a step.
    """

    method: Method
    step: StepConfig
    plan: Plan
    seconds: float

    def describe(self) -> str:
        """Write the choice in words.

        Returns:
            A phrase.
        """
        words = [f"{method_name(type(self.method))}, policy {self.step.policy}"]
        words += ["checkpointing"] if self.step.checkpointing else []
        words += [f"{self.step.frozen_dtype} frozen weights"]
        words += [f"micro-batches of {self.step.micro_batch}"]
        return ", ".join(words)

    @property
    def decided(self) -> dict[str, Any]:
        """The options of the step that the search decided, by name."""
        return {name: getattr(self.step, name) for name in DECIDED}

    def to_dict(self) -> dict[str, Any]:
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
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
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
        InputError: Nothing fits.
        UnknownName: There is no such machine.
        Unsupported: No method can live on this backbone.
    """
    if machine not in MACHINES:
        raise UnknownName("machine", machine, MACHINES)
    free = {name: values for name, values in vary.items() if getattr(step, name) == values[0]}
    steps = [
        replace(step, **dict(zip(free, values, strict=True)))
        for values in itertools.product(*free.values())
    ]
    choices: list[Choice] = []
    searches, refusals = [], []
    for method in methods:
        try:
            tuned = shadow(model, method, num_classes=num_classes, image_size=image_size)
        except Unsupported as refusal:
            refusals.append(refusal)
            continue
        found = _Search(tuned, method, budget, machine)
        choices += found.run(steps)
        searches.append(found)
    if refusals and not searches:
        raise refusals[0]
    if not choices:
        smallest = min((s.least for s in searches), key=lambda c: c.plan.peak_bytes)
        kept = step.accumulate == 1 and any(found.coupled for found in searches)
        whole = "; micro-batches would change what BatchNorm trains on" if kept else ""
        raise InputError(
            f"nothing fits in {_mib(budget)}: the smallest possible peak is"
            f" {_mib(smallest.plan.peak_bytes)}, with {smallest.describe()}{whole}"
        )
    return sorted(choices, key=lambda c: (c.seconds, c.plan.peak_bytes))


@dataclass
class _Search:
    """The plans of one method."""

    tuned: Tuned
    method: Method
    budget: int
    machine: str

    def __post_init__(self) -> None:
        self.tried: dict[StepConfig, Choice] = {}
        self.coupled = couples(self.tuned.train())

    @property
    def least(self) -> Choice:
        """The smallest peak that was planned."""
        return min(self.tried.values(), key=lambda c: c.plan.peak_bytes)

    def run(self, steps: Sequence[StepConfig]) -> list[Choice]:
        """Give the largest micro-batch of each step that fits, where the step can gain."""
        choices: list[Choice] = []
        whole: list[StepConfig] = []
        if not any(packable(self.tuned.backbone, "bf16")):  # all of it trains
            steps = [s for s in steps if s.frozen_dtype == "fp32"] or steps
        if not self.tuned.recomputes:  # then checkpointing changes nothing
            steps = [s for s in steps if not s.checkpointing] or steps
        for step in steps:
            if any(_keeps_no_more(step, other) for other in whole):
                continue
            choice = self._largest(step, min((c.seconds for c in choices), default=math.inf))
            if choice is not None:
                choices.append(choice)
                if choice.step == step:
                    whole.append(step)
        return choices

    def _largest(self, step: StepConfig, rival: float) -> Choice | None:
        """Bisect on the micro-batch; the peak grows with it, nearly in a line."""
        given = self.coupled or step.accumulate > 1
        cuts = [step.accumulate] if given else _cuts(step.batch_size)
        fits = self.at(step, cuts[0])
        arithmetic = MACHINES[self.machine].arithmetic(fits.plan.work)
        if not self._fits(fits) or arithmetic > rival:
            return None
        low, high, aim = 0, len(cuts), 1
        while high - low > 1:
            middle = min(max(aim, low + 1), high - 1)
            tried = self.at(step, cuts[middle])
            aim = self._aim([-(-step.batch_size // cut) for cut in cuts], fits, tried)
            if self._fits(tried):
                low, fits = middle, tried
            else:
                high = middle
        return fits

    def _aim(self, sizes: list[int], a: Choice, b: Choice) -> int:
        """Lay a line through two plans and say which micro-batch would just fill the budget."""
        m, n = a.step.micro_batch, b.step.micro_batch
        slope = max(1, (b.plan.peak_bytes - a.plan.peak_bytes) / (n - m))
        size = m + (self.budget - a.plan.peak_bytes) / slope
        return sum(s <= size for s in sizes) - 1

    def _fits(self, choice: Choice) -> bool:
        return choice.plan.peak_bytes <= self.budget

    def at(self, step: StepConfig, accumulate: int) -> Choice:
        """Plan one choice, once."""
        step = replace(step, accumulate=accumulate)
        if step not in self.tried:
            tuned: Any = hollow(self.tuned)
            planned = rehearse(arrange(tuned, step), step)
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

"""What fits in a memory budget, fastest first."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .checkpoint import describe
from .errors import InputError, UnknownName, Unsupported
from .families import hollow
from .graft import Method, method_name
from .narrow import FrozenDtype
from .plan import Plan, arrange, rehearse, shadow
from .policy import POLICIES
from .step import Amp, couples
from .tune import Tuned
from .work import MACHINES

SEARCHED = ("exact", "tight")
"""Policies tried, from the one that keeps most to the one that keeps least."""
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Setting:
    """What a search may change without changing what trains.

    Attributes:
        policy: What is kept for backward.
        checkpointing: Whether each block is recomputed in backward.
        frozen_dtype: What frozen weights are kept in.
    """

    policy: str
    checkpointing: bool
    frozen_dtype: FrozenDtype

    def keeps_no_more_than(self, other: Setting) -> bool:
        """Say whether this setting saves memory, at the price of work, wherever the two differ.

        Args:
            other: Another setting.

        Returns:
            Whether each of its three answers is the other's or a more frugal one.
        """
        order = list(POLICIES)
        return self == other or (
            (order.index(other.policy) == 0 or self.policy == other.policy)
            and self.checkpointing >= other.checkpointing
            and (self.frozen_dtype == "bf16" or other.frozen_dtype == "fp32")
        )


@dataclass(frozen=True)
class Choice:
    """One way to stay within the budget.

    Attributes:
        method: What trains.
        setting: What is kept, recomputed and rounded.
        accumulate: Micro-batches the batch is cut into.
        plan: What the step needs.
        seconds: Predicted time of a step.
    """

    method: Method
    setting: Setting
    accumulate: int
    plan: Plan
    seconds: float

    def describe(self, batch_size: int) -> str:
        """Write the choice in words.

        Args:
            batch_size: Images per update.

        Returns:
            A phrase.
        """
        words = [f"{method_name(type(self.method))}, policy {self.setting.policy}"]
        words += ["checkpointing"] if self.setting.checkpointing else []
        words += [f"{self.setting.frozen_dtype} frozen weights"]
        words += [f"micro-batches of {-(-batch_size // self.accumulate)}"]
        return ", ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """Give the choice as plain data.

        Returns:
            The options that make it, its plan, and the predicted seconds.
        """
        return {
            "method": describe(self.method),
            "policy": self.setting.policy,
            "checkpointing": self.setting.checkpointing,
            "frozen_dtype": self.setting.frozen_dtype,
            "accumulate": self.accumulate,
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


def free(policy: str, checkpointing: bool, frozen_dtype: FrozenDtype, accumulate: int) -> Any:
    """Leave to a search whatever is still at its default.

    Args:
        policy: `exact` to try all.
        checkpointing: False to try both.
        frozen_dtype: `fp32` to try both.
        accumulate: 1 to try all.

    Returns:
        Options of `search`.
    """
    return {
        "policies": SEARCHED if policy == SEARCHED[0] else (policy,),
        "checkpointing": (True,) if checkpointing else (False, True),
        "frozen_dtypes": ("fp32", "bf16") if frozen_dtype == "fp32" else (frozen_dtype,),
        "accumulate": None if accumulate == 1 else accumulate,
    }


def search(
    model: str | nn.Module,
    *methods: Method,
    budget: int,
    num_classes: int | None = None,
    batch_size: int = 32,
    policies: Sequence[str] = SEARCHED,
    checkpointing: Sequence[bool] = (False, True),
    frozen_dtypes: Sequence[FrozenDtype] = ("fp32", "bf16"),
    accumulate: int | None = None,
    amp: Amp = "no",
    optimizer: str = "adamw",
    image_size: int | None = None,
    machine: str = "cpu",
    ema: float = 0.0,
) -> list[Choice]:
    """Find what fits in a budget: for each method and setting the largest micro-batch.

    A setting is left out where one that keeps more and computes less already fits with the whole
    batch, and where its arithmetic alone takes longer than the fastest choice of its method so far.
    Every choice is planned, not estimated.

    Args:
        model: A timm name, or a backbone, which is not changed.
        *methods: What might train, each by itself.
        budget: Bytes that a step may need.
        num_classes: Classes of the classifier; by default the backbone's.
        batch_size: Images per update.
        policies: Policies to try.
        checkpointing: Whether to try without and with.
        frozen_dtypes: Dtypes of frozen weights to try.
        accumulate: Micro-batches the batch is cut into; by default as few as fit, and where the
            images of a batch share their statistics (BatchNorm that trains), none.
        amp: Mixed precision.
        optimizer: timm's name of the optimiser.
        image_size: Side of the square input, for a model given by name.
        machine: Whose speed orders the choices, a key of `MACHINES`.
        ema: Decay of a running average of what trains; 0 for none.

    Returns:
        The choices, fastest first.

    Raises:
        InputError: Nothing fits.
        UnknownName: There is no such policy or machine.
        Unsupported: No method can live on this backbone.
    """
    if machine not in MACHINES:
        raise UnknownName("machine", machine, MACHINES)
    for policy in policies:
        if policy not in POLICIES:
            raise UnknownName("policy", policy, POLICIES)
    settings = [
        Setting(*three) for three in itertools.product(policies, checkpointing, frozen_dtypes)
    ]
    choices: list[Choice] = []
    searches, refusals = [], []
    for method in methods:
        try:
            tuned = shadow(model, method, num_classes=num_classes, image_size=image_size)
        except Unsupported as refusal:
            refusals.append(refusal)
            continue
        found = _Search(tuned, method, budget, batch_size, accumulate, amp, optimizer, machine, ema)
        choices += found.run(settings)
        searches.append(found)
    if refusals and not searches:
        raise refusals[0]
    if not choices:
        smallest = min((s.least for s in searches), key=lambda c: c.plan.peak_bytes)
        kept = accumulate is None and any(found.coupled for found in searches)
        whole = "; micro-batches would change what BatchNorm trains on" if kept else ""
        raise InputError(
            f"nothing fits in {_mib(budget)}: the smallest possible peak is"
            f" {_mib(smallest.plan.peak_bytes)}, with {smallest.describe(batch_size)}{whole}"
        )
    return sorted(choices, key=lambda c: (c.seconds, c.plan.peak_bytes))


@dataclass
class _Search:
    """The plans of one method."""

    tuned: Tuned
    method: Method
    budget: int
    batch: int
    accumulate: int | None
    amp: Amp
    optimizer: str
    machine: str
    ema: float = 0.0

    def __post_init__(self) -> None:
        self.tried: dict[tuple[Setting, int], Choice] = {}
        self.coupled = couples(self.tuned.train())

    @property
    def least(self) -> Choice:
        """The smallest peak that was planned."""
        return min(self.tried.values(), key=lambda c: c.plan.peak_bytes)

    def run(self, settings: Sequence[Setting]) -> list[Choice]:
        """Give the largest micro-batch of each setting that fits, where the setting can gain."""
        choices: list[Choice] = []
        whole: list[Setting] = []
        if not self.tuned.recomputes:  # then checkpointing changes nothing
            settings = [s for s in settings if not s.checkpointing] or settings
        for setting in settings:
            if any(setting.keeps_no_more_than(other) for other in whole):
                continue
            choice = self._largest(setting, min((c.seconds for c in choices), default=math.inf))
            if choice is not None:
                choices.append(choice)
                if choice.accumulate == (self.accumulate or 1):
                    whole.append(setting)
        return choices

    def _largest(self, setting: Setting, rival: float) -> Choice | None:
        """Bisect on the micro-batch; the peak grows with it, nearly in a line."""
        whole = self.accumulate or (1 if self.coupled else None)
        cuts = _cuts(self.batch) if whole is None else [whole]
        fits = self.at(setting, cuts[0])
        arithmetic = MACHINES[self.machine].arithmetic(fits.plan.work)
        if not self._fits(fits) or arithmetic > rival:
            return None
        low, high, aim = 0, len(cuts), 1
        while high - low > 1:
            middle = min(max(aim, low + 1), high - 1)
            tried = self.at(setting, cuts[middle])
            aim = self._aim(cuts, fits, tried)
            if self._fits(tried):
                low, fits = middle, tried
            else:
                high = middle
        return fits

    def _aim(self, cuts: list[int], a: Choice, b: Choice) -> int:
        """Lay a line through two plans and say which cut would just fill the budget."""
        sizes = [-(-self.batch // cut) for cut in cuts]
        m, n = (-(-self.batch // c.accumulate) for c in (a, b))
        slope = max(1, (b.plan.peak_bytes - a.plan.peak_bytes) / (n - m))
        size = m + (self.budget - a.plan.peak_bytes) / slope
        return sum(s <= size for s in sizes) - 1

    def _fits(self, choice: Choice) -> bool:
        return choice.plan.peak_bytes <= self.budget

    def at(self, setting: Setting, accumulate: int) -> Choice:
        """Plan one choice, once."""
        key = setting, accumulate
        if key not in self.tried:
            tuned: Any = hollow(self.tuned)
            policy = POLICIES[setting.policy]()
            arrange(tuned, policy, setting.checkpointing, setting.frozen_dtype)
            run = self.batch, accumulate, self.amp, self.optimizer, self.ema
            planned = rehearse(tuned, *run)
            seconds = MACHINES[self.machine].seconds(planned.work)
            self.tried[key] = Choice(self.method, setting, accumulate, planned, seconds)
        return self.tried[key]


def _cuts(batch: int) -> list[int]:
    """The ways to cut a batch, smallest micro-batch first, each size once, in the fewest parts."""
    return sorted({-(-batch // size) for size in range(1, batch + 1)}, reverse=True)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"

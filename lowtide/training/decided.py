"""Choose options that are left open: rates, epochs, warm-up, the epoch that is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from ..core.graft import find
from ..core.site import Role
from ..errors import InputError
from ..tuning.tuned import Tuned
from .config import Keep, RunConfig

UPDATES = 500
"""Updates of a run, at least, of a number of epochs within `FEWEST` and `MOST`."""
FEWEST, MOST = 10, 100
WARMUP = 50
"""Updates of warm-up, of a run that is ten times as long or more."""
WARMUP_SHARE = 0.1
KEPT: dict[Keep, str] = {
    "last": "the last",
    "best": "the best",
    "auto": "the last, or a point between the start and it that is better by a standard error",
}
USUAL_DEPTH, MOST_SCALE = 12, 2.0
"""Blocks that a method's own learning rate is for, and most that another depth changes it by."""


@dataclass(frozen=True)
class Decided:
    """Options that may be left open, as the run has chosen them.

    Attributes:
        lr: Peak learning rate.
        epochs: Passes over the training images.
        warmup_epochs: Epochs of warm-up.
        keep: Which epoch's model is tested and saved.
    """

    lr: float
    epochs: int
    warmup_epochs: float
    keep: Keep

    @classmethod
    def of(cls, config: RunConfig) -> Decided:
        """Read them from the config of a run that has begun.

        Args:
            config: What `decide` gave.

        Returns:
            Its values.

        Raises:
            InputError: One is left open.
        """
        given = {f.name: getattr(config, f.name) for f in fields(cls)}
        if open_ := [name for name, value in given.items() if value is None]:
            raise InputError(f"{open_[0]} is not decided yet")
        return cls(**given)

    def __str__(self) -> str:
        return (
            f"learning rate {self.lr:g}, {self.epochs} epochs of which {self.warmup_epochs:g} of"
            f" warm-up; kept is {KEPT[self.keep]}"
        )


OPEN = tuple(f.name for f in fields(Decided))
"""Options that a run decides where they are not given."""


def decide(
    config: RunConfig,
    *,
    updates: int,
    validated: bool,
    depth: int = USUAL_DEPTH,
    returns: bool = True,
) -> RunConfig:
    """Fill in options that are left open.

    The rate of a method that trains in every block is its own times 12 / depth, within a factor of
    two: the residual stream adds up what every block moves it by.

    Args:
        config: What was asked for.
        updates: Updates of an epoch.
        validated: Whether there are validation images.
        depth: What `depth_trained` says of the model.
        returns: Whether the model before the first update is one to go back to.

    Returns:
        The config of the run, nothing open.
    """
    epochs = config.epochs or _epochs(config, updates)
    warmup = min(WARMUP / updates, WARMUP_SHARE * epochs)
    usual: dict[str, Any] = {
        "lr": config.method.learning_rate
        * min(max(USUAL_DEPTH / depth, 1 / MOST_SCALE), MOST_SCALE),
        "epochs": epochs,
        "warmup_epochs": round(warmup, 6),
        "keep": _keep(config, validated, returns),
    }
    return replace(config, **{n: v for n, v in usual.items() if getattr(config, n) is None})


def depth_trained(tuned: Tuned) -> int:
    """Count the blocks of a backbone in which a method trains.

    Args:
        tuned: The model.

    Returns:
        How many blocks there are if something trains in each; else, beside a frozen backbone or at
        its end, the usual number.
    """
    blocks = [find(tuned.model, s.path) for s in tuned.sites.of(Role.BLOCK)]
    everywhere = all(any(p.requires_grad for p in b.parameters()) for b in blocks)
    return len(blocks) if blocks and everywhere else USUAL_DEPTH


def refuse_blind(config: RunConfig, *, validated: bool) -> None:
    """Refuse to choose what is kept without validation images.

    Args:
        config: What was asked for.
        validated: Whether there are validation images.

    Raises:
        InputError: There are none, and models are to be compared.
    """
    if not validated and (config.keep not in (None, "last") or config.patience is not None):
        raise InputError(
            "keep best, keep auto and patience compare models on validation images, and there are"
            " none: give --val-fraction, or --keep last"
        )


def _keep(config: RunConfig, validated: bool, returns: bool) -> Keep:
    """Choose among what there are images and a start for."""
    if not validated:
        return "last"
    return "auto" if returns and config.patience is None else "best"


def _epochs(config: RunConfig, updates: int) -> int:
    """Say how many epochs give enough updates and room for what was given of the schedule."""
    enough = min(max(math.ceil(UPDATES / updates), FEWEST), MOST)
    return max(enough, math.floor((config.warmup_epochs or 0) + config.cooldown_epochs) + 1)

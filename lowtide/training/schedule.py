"""The learning rate of every update: warm-up, one cosine, and a rest at its end."""

from __future__ import annotations

from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from .config import RunConfig
from .decided import Decided


def make_schedule(optimizer: Optimizer, config: RunConfig, updates: int) -> Scheduler:
    """Make timm's cosine, stepped at every update.

        lr(t) = min + (lr - min) (1 + cos(pi t / T)) / 2,    T = epochs - cooldown_epochs

    The first `warmup_epochs` replace the cosine's start by a line from lr / 100 to lr; the last
    `cooldown_epochs` stay at the minimum.

    Args:
        optimizer: Its learning rate is set.
        config: Says the rates and the epochs; nothing is open.
        updates: Updates per epoch.

    Returns:
        The schedule; `step_update(n)` sets the rate of update n.
    """
    made = Decided.of(config)
    schedule, _ = create_scheduler_v2(
        optimizer,
        num_epochs=made.epochs - config.cooldown_epochs,
        warmup_epochs=made.warmup_epochs,  # type: ignore[arg-type]
        warmup_lr=made.lr / 100,
        min_lr=config.min_lr,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    return schedule

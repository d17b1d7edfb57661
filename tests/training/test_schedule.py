"""The learning rate of every update, against the formula written out."""

from __future__ import annotations

import math

import pytest
import torch

from lowtide.errors import InputError
from lowtide.training.config import RunConfig
from lowtide.training.schedule import make_schedule

UPDATES = 4


def rates(**options):
    config = RunConfig("m", "d", **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = make_schedule(optimizer, config, UPDATES)
    found = []
    for update in range(config.epochs * UPDATES):
        schedule.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_warm_up_then_cosine_then_rest():
    """11 epochs: 2 of warm-up and 8 of cosine in the first 10, then 1 at the minimum."""
    lr, low = 0.2, 0.01
    found = rates(epochs=11, lr=lr, min_lr=low, warmup_epochs=2.0, cooldown_epochs=1)
    for update, rate in enumerate(found):
        if update < 2 * UPDATES:
            wanted = lr / 100 + (lr - lr / 100) * update / (2 * UPDATES)
        elif update < 10 * UPDATES:
            wanted = low + (lr - low) * (1 + math.cos(math.pi * update / (10 * UPDATES))) / 2
        else:
            wanted = low
        assert rate == pytest.approx(wanted, rel=1e-9), update
    assert found.count(low) == UPDATES


def test_without_options_the_cosine_ends_near_zero():
    found = rates(epochs=5, lr=1.0, warmup_epochs=0.0)
    assert found == sorted(found, reverse=True)
    assert found[0] == 1.0
    assert 0 < found[-1] < 0.02


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_lr": 1.0}, "min_lr must be between 0 and lr"),
        ({"min_lr": -1e-9}, "min_lr must be a number from 0"),
        ({"cooldown_epochs": -1}, "cooldown_epochs must be a whole number from 0"),
        ({"epochs": 10, "warmup_epochs": 4, "cooldown_epochs": 6}, "leave a part of epochs"),
    ],
)
def test_impossible_schedules_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        RunConfig("m", "d", **options)

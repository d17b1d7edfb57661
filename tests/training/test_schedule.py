"""The learning rate of every update, against the formula written out."""

from __future__ import annotations

import math

import pytest
import torch
from nets import tiny

from lowtide import METHODS, apply
from lowtide.errors import InputError
from lowtide.planning.step import make_optimizer
from lowtide.training.config import RunConfig
from lowtide.training.decided import (
    FEWEST,
    MOST,
    WARMUP,
    Decided,
    decide,
    depth_trained,
    refuse_blind,
)
from lowtide.training.decided import UPDATES as UPDATES_AT_LEAST
from lowtide.training.schedule import make_schedule

UPDATES = 4


def decided(updates, validated=True, returns=True, **options):
    config = RunConfig("m", "d", **options)
    return decide(config, updates=updates, validated=validated, returns=returns)


def rates(**options):
    config = decided(UPDATES, **options)
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


def test_what_is_given_is_not_decided():
    given = {"lr": 0.5, "epochs": 7, "warmup_epochs": 0.0, "keep": "last"}
    config = decided(10, **given)
    assert Decided.of(config) == Decided(**given)
    with pytest.raises(InputError, match="lr is not decided"):
        Decided.of(RunConfig("m", "d", **{**given, "lr": None}))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_says_its_own_learning_rate(name):
    method = METHODS[name]()
    assert decided(10, method=method).lr == method.learning_rate
    assert 1e-5 <= method.learning_rate <= 3e-2


def test_more_blocks_are_trained_at_a_lower_rate_and_fewer_at_a_higher_one():
    for depth, times in ((6, 2), (12, 1), (18, 2 / 3), (24, 1 / 2), (3, 2), (50, 1 / 2)):
        config = decide(RunConfig("m", "d"), updates=10, validated=True, depth=depth)
        assert config.lr == pytest.approx(times * config.method.learning_rate)
    given = RunConfig("m", "d", lr=0.3)
    assert decide(given, updates=10, validated=True, depth=6).lr == 0.3


@pytest.mark.parametrize(
    ("name", "depth"),
    [("lora", 4), ("s2a", 4), ("full", 4), ("linear", 12), ("dtl", 12), ("partial", 12)],
)
def test_depth_is_of_backbones_that_train_all_along(name, depth):
    assert depth_trained(apply(tiny("vit"), METHODS[name]())) == depth


def test_a_small_set_gets_enough_updates_and_a_large_one_no_more_epochs_than_that():
    for updates in (1, 2, 7, 20, 31, 500):
        config = decided(updates)
        assert FEWEST <= config.epochs <= MOST
        assert config.epochs == MOST or config.epochs * updates >= UPDATES_AT_LEAST
        assert (config.epochs - 1) * updates < UPDATES_AT_LEAST or config.epochs == FEWEST
        assert config.warmup_epochs * updates <= min(WARMUP, 0.1 * config.epochs * updates) + 1e-3
    assert decided(500, warmup_epochs=30.0, cooldown_epochs=2).epochs == 33


def test_the_scale_of_the_head_is_in_every_rate():
    head, rest = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    model = torch.nn.ModuleList([head, rest])
    optimizer = make_optimizer(model, lr=0.2, scaled=dict.fromkeys(head.parameters(), 0.25))
    schedule = make_schedule(optimizer, decided(UPDATES, epochs=5, lr=0.2), UPDATES)
    for update in range(5 * UPDATES):
        schedule.step_update(update)
        rate = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
        for p in head.parameters():
            assert rate[p] == pytest.approx(0.25 * rate[rest.weight])
        assert len(rate) == 4


def test_what_is_kept_is_chosen_where_there_is_something_to_choose_by():
    assert decided(10).keep == "auto"
    assert decided(10, returns=False).keep == decided(10, patience=3).keep == "best"
    assert decided(10, validated=False).keep == "last"
    for options in ({"keep": "best"}, {"keep": "auto"}, {"patience": 3}):
        with pytest.raises(InputError, match="there are none: give --val-fraction"):
            refuse_blind(RunConfig("m", "d", **options), validated=False)
    with pytest.raises(InputError, match="keep last takes none: keep best does"):
        RunConfig("m", "d", keep="last", patience=2)
    for more, said in (
        ({"patience": 2}, "keep auto takes none"),
        ({"task": "segment"}, "decoder of task segment starts at random"),
    ):
        with pytest.raises(InputError, match=said):
            RunConfig("m", "d", keep="auto", **more)

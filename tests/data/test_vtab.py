"""VTAB-1k's table: names, groups, both averages, and what a copy lacks."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from lowtide.data.fgvc import FEW_SHOT, FGVC, S2A_FGVC
from lowtide.data.tasks import differences, find
from lowtide.data.vtab import TASKS, group_of, vtab_averages
from lowtide.errors import InputError
from lowtide.presets.tasks import SUITES


def test_the_table_has_19_tasks_in_groups_of_7_4_and_8():
    counts = {g: sum(t.group == g for t in TASKS) for g in ("natural", "specialized", "structured")}
    assert counts == {"natural": 7, "specialized": 4, "structured": 8}
    assert round(fmean(t.classes for t in TASKS), 2) == 49.47
    assert round(fmean(t.classes for t in FGVC), 1) == 234.6
    assert fmean(t.classes for t in S2A_FGVC) == 89.75
    assert all(find(FEW_SHOT, t.name) is t for t in FEW_SHOT)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("cifar", "natural"),
        ("CIFAR-100", "natural"),
        ("cifar_100", "natural"),
        ("pets", "natural"),
        ("oxford_pet", "natural"),
        ("flowers102", "natural"),
        ("resisc45", "specialized"),
        ("diabetic_retinopathy", "specialized"),
        ("dSprites_loc", "structured"),
        ("smallnorb-azimuth", "structured"),
        ("imagenet", None),
        ("", None),
    ],
)
def test_groups_by_any_name(name, group):
    assert group_of(name) == group


def test_names_of_recipes_and_of_data_agree():
    for name, aliases in SUITES["vtab"].items():
        for other in (name, *aliases):
            found = find(TASKS, other)
            assert found is not None and found.name == name


def test_no_two_tasks_share_a_name():
    for suite in (TASKS, FGVC, S2A_FGVC, FEW_SHOT):
        for task in suite:
            assert all(find(suite, name) is task for name in (task.name, *task.aliases))


def test_both_averages_are_those_of_their_definitions():
    draw = random.Random(0)
    values = {task.name: draw.random() for task in TASKS}
    columns = list(values.values())
    groups = sum(columns[:7]) / 7, sum(columns[7:11]) / 4, sum(columns[11:]) / 8
    shuffled = dict(sorted(values.items(), key=lambda _: draw.random()))
    by_groups, by_tasks = vtab_averages(shuffled)
    assert by_groups == pytest.approx(sum(groups) / 3)
    assert by_tasks == pytest.approx(sum(columns) / 19)
    assert abs(by_groups - by_tasks) > 1e-4
    renamed = {{"cifar": "cifar100", "kitti": "KITTI"}.get(n, n): v for n, v in values.items()}
    assert vtab_averages(renamed) == pytest.approx((by_groups, by_tasks))


def test_an_average_over_fewer_tasks_is_refused():
    values = {task.name: 0.5 for task in TASKS}
    with pytest.raises(InputError, match=r"^'pets' is oxford_iiit_pet, which is there already$"):
        vtab_averages({**values, "pets": 0.5})
    with pytest.raises(InputError, match="unknown VTAB-1k task 'dtdd': did you mean dtd"):
        vtab_averages({**values, "dtdd": 0.5})
    del values["dmlab"], values["svhn"]
    with pytest.raises(InputError, match="^2 of 19 VTAB-1k tasks are missing: svhn, dmlab$"):
        vtab_averages(values)


def test_a_copy_is_compared_with_what_was_published():
    kitti = find(TASKS, "kitti")
    assert kitti is not None
    assert differences(kitti, {"train": 800, "val": 200, "test": 711}, 4) == ()
    assert differences(kitti, {"train": 1000, "val": 0, "test": 711}, 4) == ()
    assert differences(kitti, {"train": 1000, "test": 711}, 4) == ()
    assert differences(kitti, {"train": 800, "test": 710}, 3) == (
        "kitti should have 4 classes, found 3",
        "kitti should have 1000 images in train, found 800",
        "kitti should have 711 images in test, found 710",
    )
    assert differences(kitti, {"test": 711}, 0) == ()
    assert differences(kitti, {"test": 7}, 0) == ("kitti should have 711 images in test, found 7",)

"""VTAB-1k: its 19 tasks, three groups and two averages (Zhai et al. 2019, arXiv:1910.04867)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import fmean

from ..errors import InputError, UnknownName
from .tasks import Task, find

GROUPS = ("natural", "specialized", "structured")


def _task(group: str, name: str, classes: int, test: int, *aliases: str) -> Task:
    return Task(name, classes, {"train": 800, "val": 200, "test": test}, aliases, group)


_natural, _specialized, _structured = (partial(_task, group) for group in GROUPS)
TASKS: tuple[Task, ...] = (
    _natural("cifar", 100, 10000, "cifar100"),
    _natural("caltech101", 102, 6084, "caltech"),
    _natural("dtd", 47, 1880),
    _natural("oxford_flowers102", 102, 6149, "flowers", "flowers102", "oxford_flowers"),
    _natural("oxford_iiit_pet", 37, 3669, "pet", "pets", "oxford_pet", "oxford_pets"),
    _natural("svhn", 10, 26032),
    _natural("sun397", 397, 21750, "sun"),
    _specialized("patch_camelyon", 2, 32768, "camelyon"),
    _specialized("eurosat", 10, 5400),
    _specialized("resisc45", 45, 6300, "resisc"),
    _specialized("diabetic_retinopathy", 5, 42670, "retinopathy"),
    _structured("clevr_count", 8, 15000),
    _structured("clevr_dist", 6, 15000, "clevr_distance"),
    _structured("dmlab", 6, 22735),
    _structured("kitti", 4, 711, "kitti_distance"),
    _structured("dsprites_loc", 16, 73728, "dsprites_location"),
    _structured("dsprites_ori", 16, 73728, "dsprites_orientation"),
    _structured("smallnorb_azi", 18, 12150, "smallnorb_azimuth"),
    _structured("smallnorb_ele", 9, 12150, "smallnorb_elevation"),
)
"""Folder names, class counts and test sizes of the list format that NOAH and SSF share."""


def group_of(task_name: str) -> str | None:
    """Tell which group a task belongs to.

    Args:
        task_name: Any of its names.

    Returns:
        `natural`, `specialized` or `structured`; None if it is no task of VTAB-1k.
    """
    task = find(TASKS, task_name)
    return task.group if task else None


def vtab_averages(by_task: Mapping[str, float]) -> tuple[float, float]:
    """Average over VTAB-1k in both ways that papers do.

    DTL, FacT and NOAH print the mean of the three group means; VPT, SSF and RLRR the mean over the
    19 tasks. They differ, as the groups have 7, 4 and 8 tasks.

    Args:
        by_task: One number per task, under any of its names.

    Returns:
        Mean of the group means, mean over the tasks.

    Raises:
        InputError: A task is missing or twice there: no average over fewer is VTAB's.
        UnknownName: A task is none of VTAB-1k's.
    """
    values: dict[str, float] = {}
    for name, value in by_task.items():
        task = find(TASKS, name)
        if task is None:
            raise UnknownName("VTAB-1k task", name, [t.name for t in TASKS])
        if task.name in values:
            raise InputError(f"{name!r} is {task.name}, which is there already")
        values[task.name] = value
    missing = [task.name for task in TASKS if task.name not in values]
    if missing:
        raise InputError(f"{len(missing)} of 19 VTAB-1k tasks are missing: {', '.join(missing)}")
    groups = [fmean(values[t.name] for t in TASKS if t.group == group) for group in GROUPS]
    return fmean(groups), fmean(values.values())

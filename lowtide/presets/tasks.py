"""The tasks of the suites that recipes were published for, and their other names."""

from __future__ import annotations

from collections.abc import Iterable

from ..data.fgvc import FEW_SHOT, FGVC
from ..data.tasks import Task
from ..data.vtab import TASKS

SHOTS = (1, 2, 4, 8, 16)


def _short(tasks: Iterable[Task]) -> dict[str, tuple[str, ...]]:
    """Call each task by its first alias, if it has one; its folder's name is another."""
    names = [(*task.aliases, task.name.lower().replace("-", "_")) for task in tasks]
    return {first: tuple(others) for first, *others in names}


SUITES: dict[str, dict[str, tuple[str, ...]]] = {
    "vtab": {task.name: task.aliases for task in TASKS},
    "fgvc": _short(FGVC),
    "few_shot": {
        f"{name}_{shots}": tuple(f"{other}_{shots}" for other in others)
        for name, others in _short(FEW_SHOT).items()
        for shots in SHOTS
    },
    "generalisation": {
        "imagenet": ("imagenet_1k", "imagenetv2", "imagenet_v2"),
        "imagenet_a": ("imagenet_adversarial",),
        "imagenet_r": ("imagenet_rendition",),
        "imagenet_sketch": (),
    },
    "whole": {
        "cifar100": ("cifar", "cifar_100"),
        "svhn": (),
        "food101": ("food", "food_101"),
        "imagenet": ("imagenet_1k",),
    },
    "dense": {"coco": ("coco_2017",), "ade20k": ("ade_20k",)},
}
"""Suite, task, other names. VTAB-1k's are its folders; `few_shot` counts images per class;
`generalisation` trains on 16 images per class of ImageNet and is named after what it is tested on;
`whole` is data sets in full; `dense` those of boxes and masks. Spelt with underscores and in lower
case."""

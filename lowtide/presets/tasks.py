"""The tasks of the suites that recipes were published for, and their other names."""

from __future__ import annotations

from ..data.vtab import TASKS

FEW_SHOT = {
    "aircraft": ("fgvc_aircraft",),
    "food": ("food101", "food_101"),
    "flowers": ("flowers102", "oxford_flowers", "oxford_flowers102"),
    "pets": ("oxford_pets",),
    "cars": ("stanford_cars", "standford_cars"),
}
SHOTS = (1, 2, 4, 8, 16)

SUITES: dict[str, dict[str, tuple[str, ...]]] = {
    "vtab": {task.name: task.aliases for task in TASKS},
    "fgvc": {
        "cub": ("cub200", "cub_200_2011", "cub_2011"),
        "nabirds": (),
        "flowers": ("flowers102", "oxford_flowers", "oxford_flowers102"),
        "dogs": ("stanford_dogs", "stanforddogs"),
        "cars": ("stanford_cars", "stanfordcars"),
    },
    "few_shot": {
        f"{name}_{shots}": tuple(f"{other}_{shots}" for other in others)
        for name, others in FEW_SHOT.items()
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
}
"""Suite, task, other names. VTAB-1k's are its folders; `few_shot` counts images per class;
`generalisation` trains on 16 images per class of ImageNet and is named after what it is tested on;
`whole` is data sets in full. Spelt with underscores and in lower case."""

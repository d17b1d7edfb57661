"""The tasks of the suites that recipes were published for, and their other names."""

from __future__ import annotations

FEW_SHOT = {
    "aircraft": ("fgvc_aircraft",),
    "food": ("food101", "food_101"),
    "flowers": ("flowers102", "oxford_flowers", "oxford_flowers102"),
    "pets": ("oxford_pets",),
    "cars": ("stanford_cars", "standford_cars"),
}
SHOTS = (1, 2, 4, 8, 16)

SUITES: dict[str, dict[str, tuple[str, ...]]] = {
    "vtab": {
        "cifar": ("cifar100", "cifar_100"),
        "caltech101": ("caltech", "caltech_101"),
        "dtd": (),
        "oxford_flowers102": ("flowers", "flowers102", "oxford_flowers"),
        "oxford_iiit_pet": ("pet", "pets", "oxford_pet", "oxford_pets"),
        "svhn": (),
        "sun397": ("sun",),
        "patch_camelyon": ("camelyon",),
        "eurosat": (),
        "resisc45": ("resisc",),
        "diabetic_retinopathy": ("retinopathy",),
        "clevr_count": (),
        "clevr_dist": ("clevr_distance",),
        "dmlab": (),
        "kitti": ("kitti_distance",),
        "dsprites_loc": ("dsprites_location",),
        "dsprites_ori": ("dsprites_orientation",),
        "smallnorb_azi": ("smallnorb_azimuth",),
        "smallnorb_ele": ("smallnorb_elevation",),
    },
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

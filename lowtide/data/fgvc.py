"""The fine-grained suites: VPT's five sets, S2A's eight, and NOAH's five few-shot sets."""

from __future__ import annotations

from .tasks import Task


def _sizes(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


FGVC: tuple[Task, ...] = (
    Task("CUB_200_2011", 200, _sizes(5394, 600, 5794), ("cub", "cub200", "cub_2011")),
    Task("nabirds", 555, _sizes(21536, 2393, 24633)),
    Task(
        "OxfordFlowers",
        102,
        _sizes(1020, 1020, 6149),
        ("flowers", "flowers102", "oxford_flowers102"),
    ),
    Task("StanfordDogs", 120, _sizes(10800, 1200, 8580), ("dogs", "stanford_dogs")),
    Task("StanfordCars", 196, _sizes(7329, 815, 8041), ("cars", "stanford_cars")),
)
"""VPT's splits as JSON files (Jia et al. 2022, arXiv:2203.12119), by the names of its folders."""

S2A_FGVC: tuple[Task, ...] = (
    Task("CUB_200_2011", 200, {}, ("cub", "cub200")),
    Task("OxfordFlowers", 102, {}, ("flowers", "flowers102", "oxford_flowers102")),
    Task("StanfordDogs", 120, {}, ("dogs",)),
    Task("caltech101", 101, {}, ("caltech",)),
    Task("dtd", 47, {}),
    Task("eurosat", 10, {}),
    Task("oxford_pets", 37, {}, ("pets", "oxford_iiit_pet")),
    Task("ucf101", 101, {}, ("ucf",)),
)
"""What S2A calls FGVC. Its splits are not specified, so none are checked: the first three come with
VPT's JSON splits, the others in any format that can be read."""

FEW_SHOT: tuple[Task, ...] = (
    Task("fgvc-aircraft", 100, {"test": 3333}, ("aircraft",)),
    Task("food101", 101, {"test": 30300}, ("food",)),
    Task("oxford-flowers102", 102, {"test": 2463}, ("flowers", "flowers102", "oxford_flowers")),
    Task("oxford-pets", 37, {"test": 3669}, ("pets",)),
    Task("standford-cars", 196, {"test": 8041}, ("cars", "stanford_cars")),
)
"""NOAH's few-shot sets, spelt as released (Zhang et al. 2022, arXiv:2206.04673)."""

"""ImageNet-C: errors under 15 corruptions at 5 severities, and their mean.

Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations", arXiv:1903.12261.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NoReturn

from ...errors import InputError, UnknownName
from ..listing import Format

ALEXNET: dict[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's top-1 error under each corruption, mean over severities, as published with the paper
(github.com/hendrycks/robustness)."""
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Held out by the authors for validation: reported, and in no mean."""
SEVERITIES = (1, 2, 3, 4, 5)
GROUPS = ("noise", "blur", "weather", "digital", "extra")
"""Folders that the archives unpack into; they may lie between the root and the corruptions."""


@dataclass(frozen=True)
class Corrupted:
    """Errors under corruption.

    Attributes:
        errors: Top-1 error per corruption, mean over the severities, between 0 and 1.
        mean: Their unnormalised mean over the 15; None unless all of them are there.
        mce: mCE, the mean of errors relative to AlexNet's; 1 is AlexNet. None likewise.
    """

    errors: dict[str, float]
    mean: float | None
    mce: float | None


def corruption_error(errors: Mapping[tuple[str, int], float]) -> Corrupted:
    """Average top-1 errors as ImageNet-C does.

        CE_c = sum_s E(s, c) / sum_s E_AlexNet(s, c),   mCE = mean_c CE_c      (section 4.1)

    Args:
        errors: Top-1 error between 0 and 1 per corruption and severity.

    Returns:
        Errors per corruption in the paper's order, and both means.

    Raises:
        InputError: A corruption lacks a severity, or has another one.
        UnknownName: There is no such corruption.
    """
    for name, _ in errors:
        if name not in (*ALEXNET, *EXTRA):
            raise UnknownName("corruption", name, (*ALEXNET, *EXTRA))
    present = [name for name in (*ALEXNET, *EXTRA) if any(name == found for found, _ in errors)]
    for name in present:
        severities = sorted(severity for found, severity in errors if found == name)
        if severities != list(SEVERITIES):
            raise InputError(f"{name} has severities {severities}, expected 1 to 5")
    means = {name: fmean(errors[name, severity] for severity in SEVERITIES) for name in present}
    if not set(ALEXNET) <= set(means):
        return Corrupted(means, None, None)
    mce = fmean(means[name] / alexnet for name, alexnet in ALEXNET.items())
    return Corrupted(means, fmean(means[name] for name in ALEXNET), mce)


def corruptions_in(folder: Path) -> dict[str, Path]:
    """Find the corruptions of a folder `corruption/severity/class/...`.

    Args:
        folder: Any path, as unpacked: corruptions may lie in the archives' own folders.

    Returns:
        The folder of each corruption; none if it is not ImageNet-C.
    """
    if not folder.is_dir():
        return {}
    homes = [folder, *(folder / group for group in GROUPS)]
    paths = [home / name for home in homes if home.is_dir() for name in (*ALEXNET, *EXTRA)]
    return {path.name: path for path in paths if (path / "1").is_dir()}


def severities_in(folder: Path) -> dict[tuple[str, int], Path]:
    """Find the corruptions and severities that a run is to be scored on.

    Args:
        folder: A folder of corruptions.

    Returns:
        The folder of class folders of each corruption and severity.

    Raises:
        InputError: A corruption lacks a severity.
    """
    homes = corruptions_in(folder)
    found = {(n, s): home / str(s) for n, home in homes.items() for s in SEVERITIES}
    for path in found.values():
        if not path.is_dir():
            raise InputError(f"{path} does not exist; expected severities 1 to 5")
    return found


def refuse_corruptions(folder: Path) -> NoReturn:
    """Say that ImageNet-C has nothing to train on.

    Args:
        folder: A folder of corruptions.

    Raises:
        InputError: Always.
    """
    raise InputError(
        f"{folder} holds corrupted images to score a run on: lowtide eval RUN --data {folder}"
    )


FORMAT = Format(corruptions_in, refuse_corruptions, rank=50, nested=corruptions_in)

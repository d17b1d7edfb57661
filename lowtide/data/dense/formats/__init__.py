"""Where dense labels come from: one format, one file, found by walking this folder."""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path

from ....errors import InputError
from ....paths import located
from ...tree import children, hint
from ..listing import GIVES, DenseFormat, DenseListing, Kind

_FILES = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]

FORMATS: list[DenseFormat] = sorted(
    (found for file in _FILES if (found := getattr(file, "FORMAT", None))),
    key=lambda found: found.rank,
)
"""The first that claims a path reads it."""


def recognised(source: Path | str) -> bool:
    """Tell whether a source holds dense labels.

    Args:
        source: A folder, a file, or anything else.

    Returns:
        Whether a format claims it.
    """
    path = Path(os.path.abspath(located(source)))
    return os.path.exists(path) and any(found.claims(path) for found in FORMATS)


def find(source: Path | str, kind: Kind | None = None) -> DenseListing:
    """Read what a source says, without opening an image.

    Args:
        source: A folder or a file.
        kind: What will be learnt from it; by default the richest that it holds.

    Returns:
        What it lists.

    Raises:
        InputError: It does not exist, is in no known format, is wrong in its format, or has no
            labels of this kind.
    """
    path = Path(os.path.abspath(located(source)))
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist{hint(path)}")
    claimed = [found for found in FORMATS if found.claims(path)]
    if not claimed:
        _refuse_unknown(path)
    listings = [claimed[0].read(path, kind)]
    if kind is None or kind in GIVES[listings[0].kind]:
        return listings[0]
    for other in claimed[1:]:
        listing = other.read(path, kind)
        if kind in GIVES[listing.kind]:
            return listing
        listings.append(listing)
    holds = " and ".join(f"{listing.kind} ({listing.format})" for listing in listings)
    raise InputError(f"{path} has no labels for {kind}, only for {holds}{_short(listings[0])}")


def _short(listing: DenseListing) -> str:
    return f": {listing.notes[-1]}" if listing.notes else ""


def _refuse_unknown(path: Path) -> None:
    known = ", ".join(found.about for found in FORMATS)
    if not path.is_dir():
        raise InputError(f"{path} is no file of dense labels: expected one of {known}")
    for child in children(path):
        if child.is_dir() and any(found.claims(child) for found in FORMATS):
            raise InputError(f"{path} holds no dense labels; did you mean {child}?")
    raise InputError(f"{path} holds no dense labels: expected one of {known}")

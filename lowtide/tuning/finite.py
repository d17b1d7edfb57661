"""Refuse weights that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import InputError


def refuse_infinite(source: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        source: Where they are from.
        tensors: By name, in any dtype.

    Raises:
        InputError: One holds NaN or infinity.
    """
    wrong = [name for name, value in tensors.items() if not _finite(value)]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(f"{source}: {wrong[0]!r} holds NaN or infinity{more}")


def _finite(value: Tensor) -> bool:
    wide = value.float() if value.is_floating_point() and value.itemsize == 1 else value
    return bool(wide.isfinite().all())

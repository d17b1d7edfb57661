"""One policy, one file, found by walking this folder: its `policy` makes it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace

from ...errors import UnknownName
from ..policy import Policy

POLICIES: dict[str, Callable[..., Policy]] = {
    file.name: importlib.import_module(f"{__name__}.{file.name}").policy
    for file in pkgutil.iter_modules(__path__)
}
"""What makes each policy, by its name."""


def policy_of(given: Policy | str, chunk: int | None = None) -> Policy:
    """Find a policy.

    Args:
        given: One, or the name of one.
        chunk: Most numbers that it runs at once, 0 for all; by default its own.

    Returns:
        The policy.

    Raises:
        UnknownName: No policy has that name.
    """
    if not isinstance(given, Policy):
        if given not in POLICIES:
            raise UnknownName("policy", given, POLICIES)
        given = POLICIES[given]()
    return given if chunk is None else replace(given, chunk=chunk or None)

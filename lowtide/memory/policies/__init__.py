"""One policy, one file, found by walking this folder: its `policy` makes it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from ...errors import UnknownName
from ..policy import Policy

POLICIES: dict[str, Callable[..., Policy]] = {
    file.name: importlib.import_module(f"{__name__}.{file.name}").policy
    for file in pkgutil.iter_modules(__path__)
}
"""What makes each policy, by its name."""


def policy_of(given: Policy | str) -> Policy:
    """Find a policy.

    Args:
        given: One, or the name of one.

    Returns:
        The policy.

    Raises:
        UnknownName: No policy has that name.
    """
    if isinstance(given, Policy):
        return given
    if given not in POLICIES:
        raise UnknownName("policy", given, POLICIES)
    return POLICIES[given]()

"""Count and name the places that a method leaves out because the backbone does not call them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..core.method import Edit, Method, Swap
from ..core.site import Sites
from ..errors import Unsupported


class LeftOutWarning(UserWarning):
    """A method does not reach all places of the kind it acts on."""


def left_out(name: str, method: Method, edits: Sequence[Edit], sites: Sites) -> list[str]:
    """Describe the places that a method would edit if the backbone called them.

    Args:
        name: The method's name.
        method: The method.
        edits: Its edits.
        sites: Every site; those that are barred say why, and what their role would be.

    Returns:
        One line where it grafts on some places of a kind and other such places are barred.
    """
    barred = sites.where(lambda s: s.barred_role is not None)
    reached = {e.site.path for e in edits if isinstance(e, Swap)}
    if not barred or not reached:
        return []
    wanted = _grafted(method, sites)
    roles = {s.role for s in wanted}
    missing = [s for s in wanted if s.path not in reached]
    missing += [s for s in barred if not s.in_shape and s.barred_role in roles]
    if not missing:
        return []
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return [
        f"{name} reaches {len(reached)} of {len(reached) + len(missing)} places of its kind; left"
        f" out: {missing[0].path}, as {missing[0].barred}{more}"
    ]


def _grafted(method: Method, sites: Sites) -> Sites:
    """Find where a method would graft if every barred place that was measured had its role."""
    free = Sites(
        replace(s, role=s.barred_role) if s.barred_role is not None and s.in_shape else s
        for s in sites
    )
    with torch.random.fork_rng(devices=[]):  # edits may draw what they graft
        try:
            return Sites(e.site for e in method.edits(free) if isinstance(e, Swap))
        except Unsupported:
            return Sites()

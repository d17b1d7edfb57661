"""The state of compression in a module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .policy import Policy


@dataclass(frozen=True)
class State:
    """The state of compression in a module; replaced as a whole, so that a copy has its own.

    Attributes:
        policy: What to keep.
        derives: Of an attention: whether queries, keys and values follow from its input; None until
            that was tried.
    """

    policy: Policy | None = None
    derives: bool | None = None


NAME = "_lowtide_state"
"""The attribute that holds it."""


def state_of(module: nn.Module) -> State:
    """Read what compression notes in a module.

    Args:
        module: Any module.

    Returns:
        The note; without a policy if the module is not compressed.
    """
    state: State = getattr(module, NAME, State())
    return state

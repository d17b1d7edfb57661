"""Shared by the callbacks: a policy that is in place while a model trains."""

from __future__ import annotations

from torch import nn

from ..memory.compress import compress, decompress
from ..memory.policies import policy_of
from ..memory.policy import Policy


class WhileTraining:
    """Compresses a model for the length of its training.

    Attributes:
        policy: What is kept for the backward pass.
    """

    def __init__(self, policy: Policy | str) -> None:
        """Choose what is kept.

        Args:
            policy: A policy or its name: exact, s2a, blocks or tight.
        """
        self.policy = policy_of(policy)
        self._model: nn.Module | None = None

    def begin(self, model: nn.Module) -> None:
        """Put the policy in place; twice is once.

        Args:
            model: What trains; changed in place.
        """
        self._model = compress(model, self.policy)

    def end(self) -> None:
        """Take the policy away; without one nothing happens."""
        if self._model is not None:
            decompress(self._model)
            self._model = None

"""Lightning: a policy while its Trainer fits."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from ..memory.policy import Policy
from .policy import WhileTraining

_LIGHTNING = "lightning.pytorch" if find_spec("lightning") else "pytorch_lightning"
"""One library under the names of two packages."""
_Callback: Any = import_module(_LIGHTNING).Callback


class PolicyCallback(_Callback):
    """Keeps for the backward pass what a policy says, from the first step to the last.

        Trainer(max_epochs=5, callbacks=[PolicyCallback("tight")]).fit(module, loader)

    All modules of the LightningModule are answered, a loss that is a module too. After `fit`, also
    one that an exception ends, the module is plain again.
    """

    def __init__(self, policy: Policy | str = "tight") -> None:
        """Choose what is kept.

        Args:
            policy: A policy or its name: exact, s2a, blocks or tight.
        """
        super().__init__()
        self._policy = WhileTraining(policy)

    def on_fit_start(self, trainer: object, pl_module: nn.Module) -> None:
        """Put the policy in place."""
        self._policy.begin(pl_module)

    def on_fit_end(self, trainer: object, pl_module: nn.Module) -> None:
        """Take the policy away."""
        self._policy.end()

    def on_exception(self, trainer: object, pl_module: nn.Module, exception: BaseException) -> None:
        """Take the policy away."""
        self._policy.end()

"""A side network: it runs beside the backbone's blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

Block = Callable[..., Any]
"""Runs one element of a backbone's chain; see `Side.step`."""


class Side(nn.Module):
    """A network beside the backbone that reads its blocks, or writes between them.

    State is an argument and a result, never an attribute, so a side network compiles, checkpoints
    and runs on several devices like any pure function.
    """

    unmergeable: ClassVar[str] = (
        "a side network runs beside the backbone, which has no place for it"
    )

    def step(self, path: str, block: Block, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Run one element of the backbone's chain: a block, or what stands between stages.

        Args:
            path: Its path.
            block: Runs it. `block(x)` gives its output; where the site is elastic, `block(x, t)`
                runs it with extra tokens `t` (B, n, C) that its own can see, and gives both; where
                the site is halved, `block(x, between=f)` runs it with `f` applied to the feature
                map between its attention and its MLP.
            x: Its input.
            state: What the previous step returned; None before the first.

        Returns:
            The output to pass on, and the next state.
        """
        return block(x), state

    def finish(self, x: Tensor, state: Any) -> Tensor:
        """Read or replace the feature map before the backbone's final norm and pooling.

        Args:
            x: Output of the last block.
            state: What the last step returned.

        Returns:
            The feature map to pass on.
        """
        return x

    def classify(self, logits: Tensor, state: Any) -> Tensor:
        """Read or replace the logits.

        Args:
            logits: What the classifier gave, `(B, K)`.
            state: What the last step returned.

        Returns:
            The final logits.
        """
        return logits


def key(path: str) -> str:
    """Name what a side network has for one site; its modules are named without dots.

    Args:
        path: The site's path.

    Returns:
        A key for `nn.ModuleDict` or `nn.ParameterDict`.
    """
    return path.replace(".", "-")

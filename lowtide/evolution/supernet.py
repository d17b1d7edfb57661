"""One network that holds every candidate: narrow modules are the first rows of the widest one's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..core.graft import key, method_name
from ..methods.noah import NOAH, FusedLoRA, leading
from ..tuning.tuned import Tuned
from .space import Genes
from .widths import WidthSpace


@dataclass(frozen=True)
class Place:
    """One tensor of the supernet.

    Attributes:
        name: In the tuned model.
        part: `prompts`, `lora` or `adapter`.
        depth: Its block.
        local: Its name in the module.
    """

    name: str
    part: str
    depth: int
    local: str


class Supernet(nn.Module):
    """A tuned model of the widest candidate that runs as a narrower one.

    In training each forward draws a candidate uniformly, from torch's own generator, so that a
    resumed epoch draws the same ones. In eval it runs `chosen`, or the widest. A candidate's
    forward is that of the method with its widths and the leading rows and columns of the shared
    tensors, and only those get a gradient.

    Attributes:
        tuned: The model, NOAH with the largest widths in place.
        space: The candidates.
        chosen: Which candidate runs in eval; None: the widest.
    """

    def __init__(self, tuned: Tuned, space: WidthSpace) -> None:
        super().__init__()
        self.tuned, self.space = tuned, space
        self.chosen: Genes | None = None
        self._places = tuple(_places(tuned))

    def forward(self, images: Tensor) -> Tensor:
        """Classify.

        Args:
            images: `(B, 3, H, W)`.

        Returns:
            Logits `(B, K)` of one candidate.
        """
        genes = self.chosen
        if self.training:
            genes = self.space.draw(random.Random(int(torch.randint(2**62, ()))))
        if genes is None:
            return self.tuned(images)
        return functional_call(self.tuned, self.tensors(genes), (images,))

    def tensors(self, genes: Genes) -> dict[str, Tensor]:
        """Take a candidate's tensors: views of the shared ones.

        Args:
            genes: The candidate.

        Returns:
            Tensors by their names in the tuned model; of a module that is left out, no rows.
        """
        own: dict[str, Any] = dict(self.tuned.named_parameters())
        return {
            p.name: leading(p.local, own[p.name], genes[p.part][p.depth] if p.part in genes else 0)
            for p in self._places
        }

    def count(self, genes: Genes) -> int:
        """Count what a candidate trains, the classifier apart.

        Args:
            genes: The candidate.

        Returns:
            Parameters.
        """
        taken = self.tensors(genes)
        return sum(taken[p.name].numel() for p in self._places if genes[p.part][p.depth])


def _places(tuned: Tuned) -> Iterator[Place]:
    """List what NOAH brought."""
    names = {id(p): name for name, p in tuned.named_parameters()}
    depth = {site.path: site.depth for site in tuned.sites}
    for path, _, graft in tuned.adapters[tuned.active].grafts:
        part = "lora" if isinstance(graft, FusedLoRA) else "adapter"
        for local, value in graft.own():
            yield Place(names[id(value)], part, depth[path], local)
    by_key = {key(path): at for path, at in depth.items()}
    name = method_name(NOAH)
    prompts: Any = tuned.sides[name].prompts if name in tuned.sides else {}
    for local, value in prompts.items():
        yield Place(names[id(value)], "prompts", by_key[local], local)

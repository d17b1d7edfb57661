"""One network that holds every candidate: narrow modules are the first rows of the widest one's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.method import method_name
from ..core.side import key
from ..methods.noah import NOAH, FusedLoRA, leading
from ..tuning.tuned import Tuned
from .space import Genes
from .widths import WidthSpace


@dataclass(frozen=True, eq=False)
class Place:
    """One tensor of the supernet.

    Attributes:
        holder: The parameters of the module that holds it, by name.
        leaf: Its name there.
        name: Its name in what NOAH brought, such as `down.weight`.
        part: `prompts`, `lora` or `adapter`.
        depth: Its block.
    """

    holder: dict[str, Any]
    leaf: str
    name: str
    part: str
    depth: int


class Supernet(nn.Module):
    """A tuned model of the widest candidate that runs as a narrower one.

    In training each forward draws a candidate uniformly, from torch's own generator, so that a
    resumed epoch draws the same ones. In eval it runs `chosen`, or the widest. A candidate's
    forward is that of the method with its widths and the leading rows and columns of the shared
    tensors, and only those get a gradient. They stay in place until backward is done, as blocks or
    chunks may be computed again there.

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
        self._whole: list[tuple[Place, nn.Parameter]] = []

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
        self.widen()
        if genes is not None:
            self._narrow(genes)
        logits: Tensor = self.tuned(images)
        if logits.requires_grad:
            logits.register_hook(self._widen_after_backward)
        else:
            self.widen()
        return logits

    def _narrow(self, genes: Genes) -> None:
        """Put a candidate's tensors, views of the shared ones, in the places of the whole ones."""
        for place in self._places:
            whole: Any = place.holder[place.leaf]
            width = genes[place.part][place.depth] if place.part in genes else 0
            self._whole.append((place, whole))
            place.holder[place.leaf] = leading(place.name, whole, width)

    def widen(self) -> None:
        """Put the whole tensors back in place, the same objects."""
        while self._whole:
            place, whole = self._whole.pop()
            place.holder[place.leaf] = whole

    def _widen_after_backward(self, _: Tensor) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(self.widen)

    def count(self, genes: Genes) -> int:
        """Count what a candidate trains, the classifier apart.

        Args:
            genes: The candidate.

        Returns:
            Parameters.
        """
        return sum(
            leading(place.name, place.holder[place.leaf], width).numel()
            for place in self._places
            if (width := genes[place.part][place.depth])
        )


def _places(tuned: Tuned) -> Iterator[Place]:
    """List what NOAH brought."""
    depth = {site.path: site.depth for site in tuned.sites}
    for path, _, graft in tuned.adapters[tuned.active].grafts:
        part = "lora" if isinstance(graft, FusedLoRA) else "adapter"
        for name, _ in graft.own():
            inner, _, leaf = name.rpartition(".")
            yield Place(graft.get_submodule(inner)._parameters, leaf, name, part, depth[path])
    name = method_name(NOAH)
    if name in tuned.sides:
        prompts: Any = tuned.sides[name].prompts
        by_key = {key(path): at for path, at in depth.items()}
        for leaf in prompts:
            yield Place(prompts._parameters, leaf, leaf, "prompts", by_key[leaf])

"""NOAH's space: the widths of three modules in every block, and how many blocks have them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..methods.noah import NOAH, PARTS
from .space import Genes, Space


@dataclass(frozen=True)
class WidthSpace(Space):
    """The networks that a NOAH supernet holds; a candidate has a width per block for each part.

    A part is in the first d blocks. Mutation: each part with `mutate_part` has its d drawn anew
    with `mutate_depth`; a longer part is drawn on, a shorter one cut. Crossover takes each part
    whole from one of the parents.

    Attributes:
        blocks: Blocks of the backbone.
        widths: Widths to choose from.
        depths: Numbers d to choose from.
        parts: Which of prompts, lora and adapter; the others have width 0.
        dropout: That of the method.
        mutate_part: Probability that a part is looked at.
        mutate_depth: Probability that its depth is then drawn anew.
    """

    blocks: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    parts: tuple[str, ...]
    dropout: float = 0.1
    mutate_part: float = 0.2
    mutate_depth: float = 0.4

    @property
    def widest(self) -> NOAH:
        """The supernet's method: every part at its largest width in every block."""
        full = {part: [max(self.widths)] * self.blocks for part in self.parts}
        return self.method(full)

    def draw(self, rng: random.Random) -> Genes:
        """Draw a depth for each part, and a width for each of its blocks."""
        return {part: self._grown([], rng.choice(self.depths), rng) for part in self.parts}

    def mutate(self, genes: Genes, rng: random.Random) -> Genes:
        """Draw the depths of some parts anew."""
        changed = dict(genes)
        for part in self.parts:
            if rng.random() < self.mutate_part and rng.random() < self.mutate_depth:
                now = [width for width in genes[part] if width]
                changed[part] = self._grown(now, rng.choice(self.depths), rng)
        return changed

    def cross(self, one: Genes, other: Genes, rng: random.Random) -> Genes:
        """Take each part from either parent."""
        return {part: rng.choice((one, other))[part] for part in self.parts}

    def method(self, genes: Genes) -> NOAH:
        """Make a candidate's method."""
        prompts, lora, adapter = (tuple(genes.get(part, (0,))) for part in PARTS)
        return NOAH(prompts, lora, adapter, self.dropout)

    def _grown(self, widths: list[int], depth: int, rng: random.Random) -> list[int]:
        """Cut widths after some blocks, or draw on until there."""
        more = [rng.choice(self.widths) for _ in range(depth - len(widths))]
        return [*widths[:depth], *more, *[0] * (self.blocks - depth)]


def quarters(blocks: int) -> tuple[int, ...]:
    """Give the depths of the paper: a quarter, a half, three quarters and all of the blocks.

    Args:
        blocks: How many there are.

    Returns:
        Numbers of blocks: 3, 6, 9, 12 of twelve.
    """
    return tuple(dict.fromkeys(-(-blocks * quarter // 4) for quarter in (1, 2, 3, 4)))
